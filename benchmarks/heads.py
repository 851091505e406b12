"""Compare heads on the features of the same encoders: kind, form of the features, choice of C.

python benchmarks/heads.py [--source FOLDER] [--seeds 0 1 ...] [--proportions 98:2 ...]
    [--precision fp32] [--models FOLDER] [--out FILE]

An encoder is trained once for each proportion and seed of T-shirts and shirts, and every head is
fitted on its features. Scores are in per cent: on validation images, by which a head is chosen,
and on test images. Seconds are processor time on one core; `seconds for 10,000` is measured on the
features of all training images. With --models the trained encoders are kept, and what an existing
FILE holds is not measured again. So several processes can share the work by seeds, with a FILE
each; a last call with all rows in one FILE measures what is missing.
"""

import argparse
import json
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from record import add_options, add_precision, record, save, write
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

from asymcl.compare.runs import run_method
from asymcl.core.settings import SOLVED_HEADS, Settings
from asymcl.data import fashion_mnist
from asymcl.metrics import unweighted_accuracy
from asymcl.models import classification_head, encode, projection_head, small_encoder
from asymcl.pretrained import load_weights
from asymcl.train.baselines import logit_adjust
from asymcl.train.heads import head_folds, solved_head
from asymcl.train.two_stage import head_learner
from asymcl.views import normalized, random_views

PROPORTIONS = {
    "90:10": (0.9, 0.1),
    "95:5": (0.95, 0.05),
    "98:2": (0.98, 0.02),
    "99.5:0.5": (0.995, 0.005),
}
PRETRAINED = "fashion_mnist_eight"
ENCODERS = {
    "frozen": ("frozen", PRETRAINED),
    "CE": ("CE", PRETRAINED),
    "CL": ("CL", PRETRAINED),
    "ACL": ("ACL", PRETRAINED),
    "CE, random weights": ("CE", None),
    "CL, random weights": ("CL", None),
}  # name -> method and weights
WIDTH, SIZE, VIEWS = 256, 128, 4
STRENGTHS = [10.0**power for power in range(-6, 2)]


class Head(NamedTuple):
    "One way to make a head"

    kind: str = "logistic"
    form: str = "directions"  # of the features
    prior: str = "balanced"  # class weights, or logits adjusted afterwards
    place: str = "encoder"  # where the features are taken
    scoring: str = "roc_auc"  # by which C is chosen
    views: str = "none"  # images of which random views are added
    largest: float = 0.1  # C that is tried


LOSSES = ("cross_entropy", "logit_adjusted")
HEADS = (
    *(Head(kind) for kind in SOLVED_HEADS),
    Head("own head", "unchanged", "as trained"),
    Head("own head", "unchanged", "adjusted"),
    *(Head(loss, "unchanged", "as trained") for loss in LOSSES),
    Head("cross_entropy", "unchanged", "adjusted"),
    Head("nearest_mean", "standardised"),
    Head(form="standardised"),
    Head(form="unchanged"),
    Head(form="directions, standardised"),
    Head(form="standardised", scoring="neg_log_loss"),
    Head(form="standardised", prior="adjusted", scoring="neg_log_loss"),
    Head(prior="adjusted", scoring="neg_log_loss"),
    Head(largest=10.0),
    Head(place="projection"),
    Head(place="both"),
    Head(views="rare"),
    Head(views="all"),
)
ELSEWHERE = {head for head in HEADS if head.place != "encoder" or head.views != "none"}
ONCE = {Head(form="unchanged"), Head(prior="adjusted", scoring="neg_log_loss")}  # at 98:2 only


def load(options, proportions, seed):
    "Images of one proportion and seed"
    shares = PROPORTIONS.get(proportions, (0.5, 0.5))
    total = 400 if options.toy else None
    return fashion_mnist(proportions=shares, source=options.source, seed=seed, train_total=total)


def wanted(options, name, proportions, seed):
    "Heads of an encoder; random weights, other places and views are compared at 98:2 with two seeds"
    few = proportions == "98:2" and seed < 2
    if ENCODERS[name][1] is None and not few:
        return
    for head in HEADS:
        if head.kind == "own head" and not name.startswith("CE"):
            continue
        if head in ELSEWHERE and not (few and name in ("frozen", "ACL")):
            continue
        if head in ONCE and proportions != "98:2":
            continue
        if head.place != "encoder" and name == "frozen":
            continue
        yield head


class KeepModel(Callback):
    "Keep the trained model"

    def after_fit(self):
        self.kept = self.learn.model


def train(options, name, data, seed):
    "Train an encoder or read it; encoder, last layer or None, and pixel statistics"
    method, weights = ENCODERS[name]
    encoder = small_encoder()
    if weights:
        load_weights(encoder, weights)
    stats = encoder.pixel_stats if weights else data.channel_stats()
    if method == "frozen":
        return encoder, None, stats
    counts = "_".join(map(str, data.counts("train").tolist()))
    path = options.models / f"{name}_{counts}_{seed}.pt"
    last = classification_head(WIDTH, 2) if method == "CE" else projection_head(WIDTH, SIZE)
    if not path.exists():
        settings = Settings(
            weights=weights,
            eta=120,
            precision=options.precision,
            epochs=1 if options.toy else 6,
            heads=("nearest_mean",),
        )
        run_method(method, seed, data, settings, [keep := KeepModel()])
        torch.save([part.state_dict() for part in keep.kept], path)
    for part, state in zip((encoder, last), torch.load(path), strict=True):
        part.load_state_dict(state)
    return encoder.eval(), last.eval(), stats


class Features:
    "Features of the splits of one encoder, by place, and of random views of the training images"

    @torch.no_grad()
    def __init__(self, data, encoder, last, stats, seed):
        self.y = {split: data.labels[rows] for split, rows in data.splits.items()}
        images = {s: normalized(data.images[rows], *stats) for s, rows in data.splits.items()}
        self.places = {"encoder": {s: encode(encoder, x) for s, x in images.items()}}
        self.own = last if isinstance(last, torch.nn.Linear) else None
        if last is not None and self.own is None:
            whole = self.places["encoder"]
            self.places["projection"] = {s: last(x) for s, x in whole.items()}
            self.places["both"] = {
                s: torch.cat([x, self.places["projection"][s]], 1) for s, x in whole.items()
            }
        self.seed, self.images, self.encoder = seed, images["train"], encoder

    @cached_property
    def views(self):
        "Features (views, n, width) of random views of the training images"
        set_seed(self.seed, reproducible=True)
        pairs = [random_views(self.images) for _ in range(VIEWS // 2)]
        return torch.stack([encode(self.encoder, pair[:, i]) for pair in pairs for i in (0, 1)])

    def rows(self, head):
        "Features and labels of the images, then of views; and the image of every row"
        x, y = self.places[head.place]["train"], self.y["train"]
        chosen = dict(none=y < 0, rare=y == 1, all=y >= 0)[head.views].nonzero().flatten()
        image = torch.cat([torch.arange(len(y)), chosen.repeat(VIEWS)])
        if len(chosen):
            x = torch.cat([x, self.views[:, chosen].flatten(0, 1)])
        return x.numpy(), y[image].numpy(), image.numpy()


def lengthened(x):
    "Directions times the root of their number of dimensions"
    return x * x.shape[1] ** 0.5


FORMS = {
    "directions": lambda: make_pipeline(Normalizer(), FunctionTransformer(lengthened)),
    "standardised": StandardScaler,
    "unchanged": FunctionTransformer,
    "directions, standardised": lambda: make_pipeline(Normalizer(), StandardScaler()),
}


def searched(features, head):
    "Logistic regression with the best C, as a function of features, and C"
    x, y, image = features.rows(head)
    weight = "balanced" if head.prior == "balanced" else None
    model = make_pipeline(
        FORMS[head.form](), LogisticRegression(class_weight=weight, max_iter=1000)
    )
    folds = [
        (np.flatnonzero(np.isin(image, fitted)), scored)
        for fitted, scored in head_folds(features.y["train"])
    ]  # a view is in the training part with its image, and never scored
    grid = {"logisticregression__C": [c for c in STRENGTHS if c <= head.largest]}
    search = GridSearchCV(model, grid, scoring=head.scoring, cv=folds).fit(x, y)

    def logits(x):
        score = torch.from_numpy(search.decision_function(x.numpy())) / 2
        return torch.stack([-score, score], 1)

    return logits, search.best_params_["logisticregression__C"]


def nearest(features, head):
    "Nearest class mean as a function of features"
    x, y, _ = features.rows(head)
    form = FORMS[head.form]().fit(x)
    centres = NearestCentroid().fit(form.transform(x), y).centroids_

    def logits(x):
        x = form.transform(x.numpy()).astype(float)
        return -torch.from_numpy(((x[:, None] - centres) ** 2).sum(2)) / 2

    return logits


def by_gradient(features, loss):
    "The linear head of `asymcl-compare` trained by a loss"
    set_seed(features.seed, reproducible=True)
    parts = {s: (features.places["encoder"][s], features.y[s]) for s in ("train", "valid")}
    head = classification_head(WIDTH, 2)
    learn = head_learner(parts, ["T-shirt", "shirt"], head, loss)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(30, 3e-2)
    return learn.model.eval()


def fit(features, head):
    "A head as a function of features, and C or None"
    if head.kind == "own head":
        return features.own, None
    if head.kind in LOSSES:
        return by_gradient(features, head.kind), None
    if head in map(Head, SOLVED_HEADS):
        x, y = features.places["encoder"]["train"], features.y["train"]
        return solved_head(head.kind, x, y), None
    if head.kind == "nearest_mean":
        return nearest(features, head), None
    return searched(features, head)


@torch.no_grad()
def scores(logits, features, head):
    "Scores in per cent of validation and test images"
    result = {}
    for split in ("valid", "test"):
        values, y = logits(features.places[head.place][split]), features.y[split]
        if head.prior == "adjusted":
            values = logit_adjust(values, features.y["train"].bincount())
        result[split] = {
            "roc auc": 100 * roc_auc_score(y, values.diff(dim=1)[:, 0]),
            "balanced accuracy": 100 * unweighted_accuracy(values.argmax(1), y),
        }
    return result


def measure(options, name, proportions, seed, heads):
    "Rows of the heads of one encoder"
    data = load(options, proportions, seed)
    features = Features(data, *train(options, name, data, seed), seed)
    for head in heads:
        start = time.process_time()
        logits, strength = fit(features, head)
        seconds = round(time.process_time() - start, 2)
        about = dict(encoder=name, proportions=proportions, seed=seed, **head._asdict())
        yield about | dict(C=strength) | scores(logits, features, head) | dict(seconds=seconds)


def time_heads(options):
    "Seconds of some heads for all training images, 10,000 of the full data set"
    data = load(options, "50:50", 0)
    features = Features(data, *train(options, "frozen", data, 0), 0)
    seconds = {}
    for head in (*map(Head, SOLVED_HEADS), Head("cross_entropy")):
        start = time.process_time()
        fit(features, head)
        seconds[head.kind] = round(time.process_time() - start, 2)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="sample", help="folder of the four original files")
    parser.add_argument("--models", type=Path, help="folder of the trained encoders")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(4), help="seeds")
    parser.add_argument("--proportions", nargs="+", choices=PROPORTIONS, default=[*PROPORTIONS])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=[*ENCODERS])
    add_precision(parser)
    add_options(parser)
    options = parser.parse_args()
    if options.toy:
        options.seeds, options.proportions, options.encoders = [0], ["98:2"], ["frozen", "ACL"]
    kept = options.out and options.out.exists()
    rows = json.loads(options.out.read_text())["rows"] if kept else []
    keys = ("encoder", "proportions", "seed", *Head._fields)
    done = {tuple(row[key] for key in keys) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        options.models = options.models or Path(folder)
        options.models.mkdir(parents=True, exist_ok=True)
        facts = {"seconds for 10,000": time_heads(options)}
        for seed in options.seeds:
            for proportions in options.proportions:
                for name in options.encoders:
                    where = name, proportions, seed
                    heads = [h for h in wanted(options, *where) if (*where, *h) not in done]
                    rows += measure(options, *where, heads) if heads else []
                    if options.out:
                        write(record(rows, **facts), options.out)
    save(record(rows, **facts), options.out)


if __name__ == "__main__":
    main()
