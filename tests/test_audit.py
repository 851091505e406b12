"""The audit finds planted errors and copies, and agrees with cleanlab and with plain NumPy."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from asymcl.audit import (
    confident_classes,
    label_issues,
    near_duplicates,
    plot_duplicates,
    plot_issues,
)
from asymcl.compare.label_audit import audit_html
from asymcl.core.checks import ArgumentError
from asymcl.data import fashion_mnist
from asymcl.data.datasets import ImageData
from asymcl.models import encode_all, small_encoder
from asymcl.plots import png_bytes
from asymcl.pretrained import load_weights

GOLDEN = Path(__file__).parent / "golden" / "cleanlab.json"  # of cleanlab 2.9.0


@pytest.fixture(scope="module")
def encoder():
    encoder = small_encoder()
    load_weights(encoder, "fashion_mnist_eight")
    return encoder


def features_of(encoder, data, images):
    return encode_all(encoder, data.loader_for(images, pixel_stats=encoder.pixel_stats))[0].numpy()


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=["two", "three"])
def test_confident_classes_are_those_of_cleanlab(case):
    labels = np.array(case["labels"])
    found = confident_classes(np.array(case["probabilities"]), labels)
    joint = np.zeros_like(case["confident_joint"])
    np.add.at(joint, (labels[found >= 0], found[found >= 0]), 1)
    assert joint.tolist() == case["confident_joint"]
    assert np.flatnonzero((found >= 0) & (found != labels)).tolist() == case["candidates"]


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_errors_are_first(encoder, seed):
    data = fashion_mnist(seed=seed)  # 90:10
    rows = data.splits["train"]
    features, true = features_of(encoder, data, data.images[rows]), data.labels[rows].numpy()
    draws = np.random.default_rng(seed).random(len(rows))
    for wrong, floor in ((draws < 0.05, 0.6), ((draws < 0.2) & (true == 1), 0.5)):
        table = label_issues(features, np.where(wrong, 1 - true, true))
        most = min(100, wrong.sum())
        assert wrong[table["image"][:100]].sum() >= floor * most
        flagged = wrong[table.loc[table["flagged"], "image"]]
        assert flagged.mean() > 5 * wrong.mean() and flagged.sum() > 0.25 * wrong.sum()


def patients():
    "Forty patients with five almost equal images each, the groups, and labels; one patient is wrong"
    torch.manual_seed(0)
    groups = np.arange(200) // 5
    centres = torch.randn(40, 3)
    centres[:, 0] = torch.where(torch.arange(40) % 2 == 0, 3.0, -3.0)
    images = centres[groups] + 0.02 * torch.randn(200, 3)
    labels = groups % 2
    labels[groups == 7] = 0
    return images.numpy(), labels, groups


def test_images_of_a_patient_do_not_vouch_for_each_other():
    images, labels, groups = patients()
    first = label_issues(images, labels, groups)
    assert sorted(first["image"][:5]) == [35, 36, 37, 38, 39]
    assert first["flagged"][:5].all() and (first["suggested"][:5] == 1).all()
    alone = label_issues(images, labels).set_index("image").loc[range(35, 40)]
    assert alone["other_neighbours"].max() < 0.7 < first["other_neighbours"][:5].min()


def test_groups_may_have_names():
    images, labels, groups = patients()
    names = np.array([f"P{group:03d}" for group in groups])
    pd.testing.assert_frame_equal(
        label_issues(images, labels, names), label_issues(images, labels, groups)
    )


def whitened(features):
    "Whitened directions by a singular value decomposition"
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    kept = u[:, : np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.99) + 1]
    return kept / np.linalg.norm(kept, axis=1, keepdims=True)


def test_neighbours_are_the_nearest_of_other_groups():
    generator = np.random.default_rng(1)
    x = generator.normal(size=(90, 12)) * np.arange(1, 13)
    labels, groups = generator.integers(0, 3, 90), generator.integers(0, 25, 90)
    cosines = whitened(x) @ whitened(x).T
    expected = []
    for i in range(90):
        order = [j for j in np.argsort(-cosines[i]) if groups[j] != groups[i]][:10]
        expected.append(np.mean(labels[order] != labels[i]))
    table = label_issues(x, labels, groups).sort_values("image")
    np.testing.assert_allclose(table["other_neighbours"], expected)


def test_pairs_are_the_nearest_of_other_splits():
    generator = np.random.default_rng(2)
    x = generator.normal(size=(300, 10))
    splits = np.repeat(["train", "valid", "test"], 100)
    cosines = whitened(x) @ whitened(x).T
    cosines[splits[:, None] == splits] = -np.inf
    table = near_duplicates(x, splits, expected=1e9)  # all
    for image, twin, cosine in table[["image", "twin", "cosine"]].itertuples(index=False):
        assert twin == cosines[image].argmax() and abs(cosine - cosines[image, twin]) < 1e-9
    assert len(
        {frozenset(pair) for pair in zip(table["image"], table["twin"], strict=True)}
    ) == len(table)
    assert table["expected"].is_monotonic_increasing
    assert (
        near_duplicates(x, splits)["expected"].lt(1).all() and len(near_duplicates(x, splits)) < 8
    )


def test_darker_and_noisy_copies_are_found(encoder):
    data = fashion_mnist(proportions=None, seed=0)
    rows = torch.cat(list(data.splits.values()))
    images = data.images[rows].clone()
    splits = np.repeat(list(data.splits), [len(of_split) for of_split in data.splits.values()])
    torch.manual_seed(0)
    images[-20:-10] = (images[:10] * 0.85).to(torch.uint8)
    noise = 4 * torch.randn(10, 1, 28, 28)
    images[-10:] = (images[10:20] + noise).clamp(0, 255).to(torch.uint8)
    table = near_duplicates(features_of(encoder, data, images), splits)
    found = {frozenset(pair) for pair in zip(table["image"], table["twin"], strict=True)}
    planted = {frozenset((i, len(images) - 20 + i)) for i in range(20)}
    assert len(planted & found) >= 18
    assert len(found - planted) < 40  # of 4,800 images


def test_independent_images_are_not_listed():
    counts = []
    for seed in range(8):
        x = np.random.default_rng(seed).normal(size=(500, 6))
        counts.append(len(near_duplicates(x, np.arange(500) % 2, expected=3)))
    assert 4 < sum(counts) < 48  # 24 images expected, most pairs are found from both ends


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ((np.ones(4), np.zeros(4, int)), "features must have shape (n, width), got (4,)"),
        ((np.eye(4), [0, 1, 0]), "labels must be one for each of 4 images, got (3,)"),
        ((np.eye(4), [0, 1, 0, 1], [0, 1]), "groups must be one for each of 4 images, got (2,)"),
        ((np.eye(4), [0.5, 1, 0, 1]), "labels must be integers from 0 of two classes or more"),
        ((np.eye(4), [-1, 1, 0, 1]), "labels must be integers from 0 of two classes or more"),
        ((np.eye(4), [0, 2, 0, 2]), "share no group, got classes in [2, 0, 2] groups"),
        ((np.eye(4), [0, 1, 0, 1], [0, 0, 1, 2]), "labels must have every class in two parts"),
        ((np.full((4, 4), np.inf), [0, 1, 0, 1]), "features must be finite, got NaN or infinity"),
    ],
)
def test_unsuitable_input_is_one_line(arguments, problem):
    with pytest.raises(ArgumentError) as caught:
        label_issues(*arguments)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_the_report_escapes_names(tmp_path):
    row = dict(image=1, split="train", given="<b>", suggested="x", flagged=True)
    pd.DataFrame([row]).to_csv(tmp_path / "label_audit.csv", index=False)
    columns = ["image", "class", "twin_image", "twin_class"]
    pd.DataFrame(columns=columns).to_csv(tmp_path / "near_duplicates.csv", index=False)
    page = audit_html(tmp_path)
    assert "1 of 1 &lt;b&gt;" in page and "<b>" not in page


def test_pictures_show_any_file_name_and_class():
    "Bytes that are not UTF-8, and dollar signs, which are not mathematics"
    data = ImageData(
        images=torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([0, 1]),
        classes=("$a^^$", "b"),
        splits=dict(train=torch.arange(2)),
        files=("\udcff.png", "$x^^$.png"),
        name="made up",
        source="memory",
        seed=0,
    )
    names = dict(file=data.files, given=data.classes, suggested=data.classes[::-1])
    png_bytes(plot_issues(data, pd.DataFrame(dict(image=[0, 1]) | names)))
    png_bytes(data.show())


@pytest.mark.parametrize(
    "draw, text", [(plot_issues, "no label issues"), (plot_duplicates, "no near duplicates")]
)
def test_the_sheet_of_an_empty_table_says_that_nothing_was_found(draw, text):
    sheet = draw(None, pd.DataFrame())
    assert [ax.texts[0].get_text() for ax in sheet.axes] == [text]
    png_bytes(sheet)
