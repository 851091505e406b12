"""Folds and subgroups from the command to the report, and their bad input."""

import json
import warnings
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from sklearn.model_selection import GroupKFold

from asymcl import __version__
from asymcl.cli.compare import compare_command
from asymcl.compare import tune
from asymcl.compare.data import digest, load_data
from asymcl.compare.records import job_key
from asymcl.core.settings import Reading, Settings
from asymcl.statistics import compare_methods

FOLDS = 3
IMAGES = 96
COMMAND = [
    *("--data", "csv", "--image-size", "16", "--group-column", "patient"),
    *("--methods", "CE,CL", "--classifier-loss", "cross_entropy", "--lr", "0.001,0.01"),
    *("--epochs", "1", "--classifier-epochs", "2", "--batch-size", "16", "--name", "few"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "A CSV of two images for each of 48 patients, a quarter of them rare, at three sites"
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(IMAGES):
        patient = i // 2
        rare = patient % 4 == 0
        pixels = rng.integers(0, 100, (16, 16)) + (120 if rare else 40)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        rows.append((f"{i}.png", "rare" if rare else "common", patient, "ABC"[patient % 3]))
    table = pd.DataFrame(rows, columns=["path", "label", "patient", "site"])
    table.assign(one="A", split=["train", "test"] * (IMAGES // 2)).to_csv(
        folder / "photos.csv", index=False
    )
    return folder / "photos.csv"


@pytest.fixture(scope="module")
def comparison(photos, tmp_path_factory):
    "Folder of a comparison with folds, a grid and subgroups"
    out = tmp_path_factory.mktemp("runs")
    options = ["--source", str(photos), "--out", str(out), "--subgroup-column", "site"]
    cache = str(out / "cache")
    assert compare_command([*COMMAND, *options, "--folds", str(FOLDS), "--cache", cache]) == 0
    return out / "few"


def test_folds_run_once_each_without_seeds(comparison):
    results = pd.read_csv(comparison / "results.csv")
    assert sorted(results["seed"].unique()) == list(range(FOLDS))
    assert len(results) == 2 * 2 * FOLDS


def test_folds_test_each_image_once_and_keep_patients_together(comparison):
    splits = [pd.read_csv(path) for path in sorted(comparison.glob("records/splits-*.csv"))]
    assert len(splits) == FOLDS
    tested = [set(table.loc[table["split"] == "test", "image"]) for table in splits]
    assert sum(map(len, tested)) == len(set.union(*tested)) == IMAGES
    for table in splits:
        assert table.groupby("group")["split"].nunique().max() == 1
        assert set(table.groupby("split")["class"].nunique()) == {2}


def test_folds_are_as_even_as_those_of_scikit_learn(comparison):
    splits = [pd.read_csv(path) for path in comparison.glob("records/splits-*.csv")]
    sizes = sorted(int((table["split"] == "test").sum()) for table in splits)
    groups = np.arange(IMAGES) // 2
    oracle = [len(test) for _, test in GroupKFold(FOLDS).split(groups, groups=groups)]
    assert max(sizes) - min(sizes) <= max(oracle) - min(oracle) + 2


def test_report_corrects_the_intervals_and_chooses_settings_by_validation(comparison):
    page = (comparison / "report.html").read_text()
    assert "Nadeau and Bengio 2003" in page and "CE (chosen)" in page and "CL (chosen)" in page
    records = [json.loads(path.read_text()) for path in (comparison / "records").glob("*.json")]
    assert {record["folds"] for record in records} == {FOLDS}


def test_report_has_subgroups_of_all_methods(comparison):
    table = pd.read_csv(comparison / "subgroups.csv")
    assert "<h2>Subgroups</h2>" in (comparison / "report.html").read_text()
    assert set(table["subgroup"]) == {"A", "B", "C"}
    assert table["method"].nunique() == 4
    counts = table.drop_duplicates(["method", "subgroup"]).groupby("method")[["images", "rare"]]
    assert (counts.sum() == [IMAGES, IMAGES // 4]).all(axis=None)
    overall = table[table["metric"] == "recall"].groupby("method")["overall"].first()
    results = pd.read_csv(comparison / "results.csv").groupby("method")["recall_rare"].mean()
    assert np.allclose(overall, results[overall.index], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--folds", "1"], "--folds must be finite and >= 2, got 1"),
        (["--folds", "13"], "--folds must be at most 12, the number of groups of class rare"),
        (
            ["--folds", "3", "--split-column", "split"],
            "--folds must be left out for images with given splits, got 3",
        ),
        (["--subgroup-column", "town"], "must have one column 'town', found 'path', 'label'"),
        (["--subgroup-column", "one"], "--subgroup-column must have two values or more, got 'A'"),
    ],
)
def test_bad_input_is_an_error_before_training(options, problem, photos, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare_command(
            [*COMMAND, "--source", str(photos), "--out", str(tmp_path), *options]
            + ["--cache", str(tmp_path / "cache")]
        )
    text = capsys.readouterr().err
    assert stopped.value.code == 2
    assert problem in text
    assert len(text.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.predictions.csv"))


def test_fashion_mnist_has_no_folds(capsys):
    with pytest.raises(SystemExit):
        compare_command(["--folds", "5"])
    assert "--folds must be left out for fashion_mnist" in capsys.readouterr().err


def test_records_without_folds_keep_their_name():
    job = Settings(methods=("CE",), seeds=(0,))
    fields = asdict(job)
    del fields["folds"]
    for name in ("cache", "cache_limit", "subgroup_column"):
        del fields["reading"][name]
    assert job_key(job) == digest(fields | dict(version=__version__))[:24]


def test_a_repeat_divides_the_images_anew(photos, tmp_path):
    reading = Reading(size=16, group_column="patient", cache=str(tmp_path))
    settings = Settings(data="csv", source=str(photos), reading=reading, folds=FOLDS)
    tests = [load_data(settings, seed).splits["test"].tolist() for seed in range(2 * FOLDS)]
    assert sorted(sum(tests[:FOLDS], [])) == sorted(sum(tests[FOLDS:], [])) == list(range(IMAGES))
    assert not {*map(tuple, tests[:FOLDS])} & {*map(tuple, tests[FOLDS:])}


def test_corrected_test_keeps_its_level_on_correlated_folds():
    "Folds of one correlation have the level 5% exactly; sign flips reject far more often"
    rng = np.random.default_rng(0)
    folds, repeats, tables = 5, 4, 400
    n = folds * repeats
    shared = rng.normal(size=(tables, 1)) * np.sqrt(1 / folds)
    scores = 0.5 + 0.01 * (shared + np.sqrt(1 - 1 / folds) * rng.normal(size=(tables, n)))
    rejected = {0.0: 0, 1 / (folds - 1): 0}
    for row in scores:
        records = [dict(method="CE", seed=i, roc_auc=0.5) for i in range(n)]
        records += [dict(method="CL", seed=i, roc_auc=score) for i, score in enumerate(row)]
        for overlap in rejected:
            if overlap:
                found = compare_methods(records, ["roc_auc"], ["CE"], overlap=overlap)
                p = found["p"][0]
            else:
                p = stats.wilcoxon(row - 0.5).pvalue
            rejected[overlap] += p <= 0.05
    naive, corrected = (count / tables for count in rejected.values())
    assert 0.02 <= corrected <= 0.08
    assert naive > 0.2


def test_confirmation_warns_of_test_images_that_the_search_may_have_seen(photos, monkeypatch):
    monkeypatch.setattr(tune, "compare", lambda *arguments, **options: iter(()))
    reading = Reading(size=16, group_column="patient", cache=str(photos.parent / "cache"))
    settings = Settings(data="csv", source=str(photos), reading=reading, seeds=(0,))
    with pytest.warns(UserWarning, match="may be test images here"):
        assert list(tune.confirm({"CE": {}}, settings, None, searched=(100,))) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(tune.confirm({"CE": {}}, settings, None)) == []
        given = Settings(seeds=(0,))  # its test images are given
        assert list(tune.confirm({"CE": {}}, given, None, searched=(100,))) == []
