"""Plant wrong labels and near duplicates, and count how many of them `asymcl.audit` finds.

python benchmarks/audit.py [--sources sample FOLDER] [--seeds N] [--out FILE]

T-shirts and shirts with the bundled weights, which have seen neither. Labels: 5% of all labels are replaced by the other class, or 20%
of the labels of shirts, the rarer class. `first 100` has the planted errors among the first hundred images of each ranking, in per
cent: the list of `label_issues`, its self-confidence alone, its neighbours alone, and the self-confidence of a regression that counts
the classes equally. `trained` is an encoder that 60 epochs of cross-entropy have trained from random weights on
the wrong labels. Near duplicates: changed copies of training images replace test images; `found` is the share of them in the list of
`near_duplicates`, and among as many pairs by cosine alone.
"""

import argparse
import io
import time
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from fastai.callback.core import Callback
from PIL import Image
from record import add_options, record, save
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from asymcl.audit import label_issues, near_duplicates
from asymcl.compare.runs import run_method
from asymcl.core.settings import Settings
from asymcl.data import fashion_mnist
from asymcl.models import encode_all, small_encoder
from asymcl.pretrained import load_weights
from asymcl.train.heads import head_folds

WEIGHTS = "fashion_mnist_eight"
PROPORTIONS = {"as they are": None, "90:10": (0.9, 0.1), "98:2": (0.98, 0.02)}
FIRST = 100
COPIES = 40  # of each change


class KeepModel(Callback):
    "Keep the trained model"

    def after_fit(self):
        self.kept = self.learn.model


@cache
def pretrained():
    "Encoder with the bundled weights"
    encoder = small_encoder()
    load_weights(encoder, WEIGHTS)
    return encoder


def features_of(encoder, data, images, rows):
    "Features of some images"
    stats = getattr(encoder, "pixel_stats", None)
    loader = data.loader_for(images[rows], pixel_stats=stats)
    return encode_all(encoder, loader)[0].numpy()


def plant_labels(labels, errors, seed):
    "Labels with errors, and whether each is one"
    draws = np.random.default_rng(seed).random(len(labels))
    wrong = (draws < 0.05) if errors == "5% of all" else (draws < 0.2) & (labels == 1)
    return np.where(wrong, 1 - labels, labels), wrong


def trained_on(data, labels, seed):
    "Encoder that was trained with wrong labels"
    rows = data.splits["train"]
    planted = data.labels.clone()
    planted[rows] = torch.from_numpy(labels)
    settings = Settings(epochs=60, heads=("nearest_mean",))
    run_method("CE", seed, replace(data, labels=planted), settings, [keep := KeepModel()])
    return keep.kept[0].eval().cpu()


def equal_self_confidence(features, labels):
    "Held-out probability of the given class, with classes that count equally"
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    x = normalize(features) * features.shape[1] ** 0.5
    folds = head_folds(torch.from_numpy(labels))
    p = cross_val_predict(model, x, labels, cv=folds, method="predict_proba")
    return p[np.arange(len(labels)), labels]


def label_row(data, encoder, errors, seed):
    "Planted errors that each ranking finds"
    rows = data.splits["train"]
    labels, wrong = plant_labels(data.labels[rows].numpy(), errors, seed)
    source = trained_on(data, labels, seed) if encoder == "trained" else pretrained()
    features = features_of(source, data, data.images, rows)
    start = time.process_time()
    table = label_issues(features, labels)
    seconds = time.process_time() - start
    by_image = table.sort_values("image")
    rankings = {
        "list": table["image"].to_numpy(),
        "self-confidence": by_image["self_confidence"].to_numpy().argsort(kind="stable"),
        "neighbours": (-by_image["other_neighbours"].to_numpy()).argsort(kind="stable"),
        "classes equal": equal_self_confidence(features, labels).argsort(kind="stable"),
    }
    flagged = wrong[table.loc[table["flagged"], "image"]]
    return {
        "images": len(labels),
        "wrong": int(wrong.sum()),
        "first 100": {name: 100 * wrong[order[:FIRST]].mean() for name, order in rankings.items()},
        "flagged": {
            "images": len(flagged),
            "precision": 100 * flagged.mean(),
            "recall": 100 * flagged.sum() / wrong.sum(),
        },
        "seconds": round(seconds, 2),
    }


def as_jpeg(image):
    "Image after JPEG of quality 60"
    out = io.BytesIO()
    image.save(out, "JPEG", quality=60)
    return Image.open(out)


CHANGES = {
    "darker by 15%": lambda image: image.point(lambda value: round(0.85 * value)),
    "contrast +15%": lambda image: image.point(lambda value: min(255, round(1.15 * value))),
    "JPEG, quality 60": as_jpeg,
    "noise, sigma 6": lambda image: Image.fromarray(
        (np.asarray(image) + np.random.default_rng(0).normal(0, 6, (28, 28)))
        .clip(0, 255)
        .astype(np.uint8)
    ),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "rotated by 5 degrees": lambda image: image.rotate(5, Image.Resampling.BILINEAR),
    "smaller and back": lambda image: image.resize((22, 22)).resize((28, 28)),
    "shifted by 1 pixel": lambda image: Image.fromarray(np.roll(np.asarray(image), 1, (0, 1))),
}


def by_cosine(features, splits, n):
    "The n pairs of training or validation image and test image with the highest cosine"
    test = splits == "test"
    unit = normalize(features)
    distances, near = NearestNeighbors(n_neighbors=1).fit(unit[~test]).kneighbors(unit[test])
    order = distances[:, 0].argsort()[:n]
    return {(np.flatnonzero(~test)[near[i, 0]], np.flatnonzero(test)[i]) for i in order}


def duplicate_rows(data, seed):
    "Planted near duplicates that are found"
    generator = np.random.default_rng(seed)
    n = COPIES * len(CHANGES)
    originals = generator.choice(data.splits["train"].numpy(), n, replace=False)
    copies = generator.choice(data.splits["test"].numpy(), n, replace=False)
    changes = np.repeat(list(CHANGES), COPIES)
    images = data.images.clone()
    for change, original, copy in zip(changes, originals, copies, strict=True):
        changed = CHANGES[change](Image.fromarray(data.images[original, 0].numpy()))
        images[copy, 0] = torch.from_numpy(np.array(changed))
    rows = torch.cat(list(data.splits.values())).numpy()
    splits = np.repeat(list(data.splits), [len(of_split) for of_split in data.splits.values()])
    features = features_of(pretrained(), data, images, rows)
    start = time.process_time()
    table = near_duplicates(features, splits)
    seconds = round(time.process_time() - start, 2)
    listed = {frozenset(pair) for pair in rows[table[["image", "twin"]].to_numpy()].tolist()}
    cosine = {frozenset(rows[list(pair)]) for pair in by_cosine(features, splits, len(table))}
    planted = [frozenset(pair) for pair in zip(originals, copies, strict=True)]
    for change in CHANGES:
        some = [pair for pair, kind in zip(planted, changes, strict=True) if kind == change]
        found = {"near_duplicates": listed, "cosine alone": cosine}
        shares = {
            name: 100 * len(pairs.intersection(some)) / COPIES for name, pairs in found.items()
        }
        yield dict(change=change, images=len(rows), found=shares)
    others = len(listed.difference(planted))
    yield dict(change="none", images=len(rows), listed=others, seconds=seconds)


def label_rows(options, source):
    "Rows of the planted labels"
    for name, shares in PROPORTIONS.items():
        for errors in ("5% of all", "20% of shirts"):
            for seed in range(options.seeds):
                data = fashion_mnist(proportions=shares, source=source, seed=seed)
                about = dict(proportions=name, errors=errors, seed=seed)
                yield about | dict(encoder="frozen") | label_row(data, "frozen", errors, seed)
                first = name == "90:10" and errors == "5% of all" and seed == 0
                if first and source == "sample" and not options.toy:
                    found = label_row(data, "trained", errors, seed)
                    yield about | dict(encoder="trained") | found


def copy_rows(options, source):
    "Rows of the planted copies"
    for seed in range(options.seeds):
        data = fashion_mnist(proportions=None, source=source, seed=seed)
        for row in duplicate_rows(data, seed):
            yield dict(seed=seed) | row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text = "sample, or folder of the four original files"
    parser.add_argument("--sources", nargs="+", default=["sample"], help=text)
    parser.add_argument("--seeds", type=int, default=4, help="number of seeds")
    add_options(parser)
    options = parser.parse_args()
    if options.toy:
        options.seeds = 1
    rows = []
    for source in options.sources:
        data = "bundled sample" if source == "sample" else "full Fashion-MNIST"
        for planted, rows_of in dict(labels=label_rows, copies=copy_rows).items():
            rows += [dict(data=data, planted=planted) | row for row in rows_of(options, source)]
    save(record(rows), options.out)


if __name__ == "__main__":
    main()
