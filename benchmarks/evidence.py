"""Tune every method on two seeds, compare the chosen settings on ten others, and choose nothing by a test image.

python benchmarks/evidence.py --source FASHION_MNIST_FOLDER [--weights FOLDER] [--tasks NAME,NAME]
    [--precision fp32] [--out FILE]

The design is written down in nbs/results/scenarios.ipynb. Every method has six trials: three learning rates, each with
two values of one more setting. Settings, the averaging of AFCL, the head of CE and the best contrastive method are chosen
by the mean validation ROC AUC of seeds 100 and 101. Finished encoders are not trained again, and several processes may
share the work. The folder of weights holds the files of tools/pretrain_fashion.py. What the file --out holds is not run
again: neither a task with a test, nor the trials of a task without one; to repeat them, give another file. A row `run`
says when, where and in which precision a task, or a part of it, ran.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from record import add_options, add_precision, record, save

from asymcl.compare import compare
from asymcl.compare.experiment import data_loader
from asymcl.compare.records import read_predictions
from asymcl.core.settings import Settings
from asymcl.statistics import image_intervals

SEARCH_SEEDS = (100, 101)
HEADS = ("cross_entropy", "logistic")
METRICS = ("roc_auc", "average_precision", "unweighted_accuracy", "weighted_accuracy")


@dataclass(frozen=True)
class Task:
    "Classes, frequent one first, their shares of the training images, and the weights to start from"

    classes: tuple | str = ("T-shirt/top", "Shirt")
    proportions: tuple | None = (0.98, 0.02)
    long_tail_ratio: float | None = None
    weights: str | None = None
    cut: tuple = ()  # methods that are left out


SHORT = ("AFSupMin",)  # cut for time, before these tasks began
LONG_TAIL = ("AFSupMin", "AFCL batch")  # its encoders take three times as long
TASKS = {
    "shirt_98_pretrained": Task(weights="fashion_mnist_eight"),
    "shirt_99_5_pretrained": Task(proportions=(0.995, 0.005), weights="fashion_mnist_eight"),
    "shirt_90_pretrained": Task(proportions=(0.9, 0.1), weights="fashion_mnist_eight", cut=SHORT),
    "coat_98_pretrained": Task(("Pullover", "Coat"), weights="without_pullover_coat.safetensors"),
    "boot_98_pretrained": Task(
        ("Sneaker", "Ankle boot"), weights="without_sneaker_boot.safetensors"
    ),
    "shirt_98_random": Task(cut=SHORT),
    "long_tail_random": Task("all", None, long_tail_ratio=100, cut=LONG_TAIL),
    "shirt_95_pretrained": Task(proportions=(0.95, 0.05), weights="fashion_mnist_eight", cut=SHORT),
    "shirt_99_5_random": Task(proportions=(0.995, 0.005), cut=SHORT),
    "shirt_90_random": Task(proportions=(0.9, 0.1), cut=SHORT),
    "coat_98_random": Task(("Pullover", "Coat"), cut=SHORT),
    "boot_98_random": Task(("Sneaker", "Ankle boot"), cut=SHORT),
    "shirt_95_random": Task(proportions=(0.95, 0.05), cut=SHORT),
}  # the most informative first
LABELS = dict(
    shirt_90_pretrained="Shirt 90:10",
    shirt_95_pretrained="Shirt 95:5",
    shirt_98_pretrained="Shirt 98:2",
    shirt_99_5_pretrained="Shirt 99.5:0.5",
    coat_98_pretrained="Coat 98:2",
    boot_98_pretrained="Boot 98:2",
    shirt_90_random="Shirt 90:10, random",
    shirt_95_random="Shirt 95:5, random",
    shirt_98_random="Shirt 98:2, random",
    shirt_99_5_random="Shirt 99.5:0.5, random",
    coat_98_random="Coat 98:2, random",
    boot_98_random="Boot 98:2, random",
    long_tail_random="ten classes 100:1, random",
)  # in the order of tables and figures
RATES = {True: (3e-4, 1e-3, 3e-3), False: (1e-3, 3e-3, 1e-2)}  # with pretrained weights, without
ASYMMETRY = (dict(eta=10.0, gamma=0.0), dict(eta=120.0, gamma=2.0))
VARIANTS = {
    "CE": [dict(methods=("CE",)), dict(methods=("CE-adjusted",))],
    "CL": [dict(methods=("CL",), temperature=t) for t in (0.07, 0.2)],
    "SupMin": [dict(methods=("SupMin",), temperature=t) for t in (0.07, 0.2)],
    "AFSupMin": [dict(methods=("AFSupMin",), **values) for values in ASYMMETRY],
    "AFCL pairs": [dict(methods=("AFCL",), averaging="pairs", **values) for values in ASYMMETRY],
    "AFCL batch": [dict(methods=("AFCL",), averaging="batch", **values) for values in ASYMMETRY],
}  # method -> settings besides the learning rate


class Work:
    "Encoders of one task, with their records"

    def __init__(self, name, options, recorded=()):
        self.name = name
        self.recorded = {trial_key(row): row for row in recorded}
        self.folder = options.work / name
        self.seeds = tuple(range(options.seeds))
        self.toy = options.toy
        task = TASKS[name]
        weights = task.weights
        if weights and weights.endswith(".safetensors"):
            weights = str(options.weights / weights)
        self.base = Settings(
            source=options.source,
            classes=task.classes,
            proportions=task.proportions,
            long_tail_ratio=task.long_tail_ratio,
            train_total=400 if options.toy else None,
            weights=weights,
            epochs=1 if options.toy else 6,
            precision="fp32" if options.toy else options.precision,
            heads=HEADS,
        )
        self.load = data_loader(len(self.seeds))

    def runs(self, changes, seeds):
        "Runs of some settings, trained or read from their records"
        settings = replace(self.base, **changes, seeds=seeds)
        return list(compare(settings, folder=self.folder, load=self.load))

    def trials(self, method):
        "Settings of the trials of a method"
        rates = RATES[self.base.weights is not None][: 1 if self.toy else None]
        return [dict(lr=rate, **variant) for rate in rates for variant in VARIANTS[method]]

    def search(self, method):
        "A row for each trial and head, with the mean validation ROC AUC of the seeds of the search"
        rows = []
        heads = HEADS if method == "CE" else ("logistic",)
        for changes in self.trials(method):
            keys = [(method, head, readable(changes)) for head in heads]
            if self.recorded.keys() >= set(keys):
                rows += [self.recorded[key] | dict(changes=changes) for key in keys]
                continue
            runs = self.runs(changes, SEARCH_SEEDS)
            for head in heads:
                scores = [
                    run.valid_metrics.get("roc_auc", 0.0)
                    for run in runs
                    if run.varied["head"] == head
                ]
                row = dict(part="search", task=self.name, method=method, head=head)
                row |= dict(settings=readable(changes), changes=changes)
                rows.append(row | dict(valid_roc_auc=mean(scores), valid_by_seed=scores))
        return rows

    def test(self, method, row):
        "Runs of each seed and head with the chosen settings, and a row for each"
        runs = self.runs(row["changes"], self.seeds)
        facts = dict(part="test", task=self.name, method=method, settings=row["settings"])
        return runs, [
            facts
            | dict(head=run.varied["head"], seed=run.seed, seconds=run.seconds)
            | {name: run.metrics.get(name) for name in METRICS}
            | dict(valid_roc_auc=run.valid_metrics.get("roc_auc"))
            for run in runs
        ]


def trial_key(row):
    "What names a trial and head of a task"
    return row["method"], row["head"], row["settings"]


def readable(changes):
    "Settings of a trial in a few words"
    return ", ".join(
        value[0] if name == "methods" else f"{name} {value}" for name, value in changes.items()
    )


def best(rows):
    "Row of the highest validation ROC AUC; the first of equal ones"
    return max(rows, key=lambda row: row["valid_roc_auc"])


def choose(searches):
    "Chosen row of each method, with AFCL in the better averaging, and the best methods"
    averaged = ("AFCL pairs", "AFCL batch")
    chosen = {name: best(rows) for name, rows in searches.items() if name not in averaged}
    chosen["AFCL"] = best([best(searches[name]) for name in averaged if name in searches])
    scores = {method: row["valid_roc_auc"] for method, row in chosen.items()}
    trained = max(scores, key=scores.get)
    contrastive = max((name for name in scores if name != "CE"), key=scores.get)
    for method, row in chosen.items():
        bests = dict(best_trained=method == trained, best_contrastive=method == contrastive)
        chosen[method] = row | bests | dict(part="choice", method=method)
    contrasts = {"AFCL": "CL", "SupMin": "CL"}
    return chosen, [*contrasts.items(), (contrastive, "CE"), (trained, "frozen")]


def image_rows(work, runs, chosen, contrasts):
    "Bootstrap intervals over test images of the primary contrasts, with the chosen heads"
    predictions = {}
    for method, all_heads in runs.items():
        head = chosen[method]["head"]
        predictions[method] = [
            read_predictions(work.folder, run) for run in all_heads if run.varied["head"] == head
        ]
    contrasts = [pair for pair in contrasts if set(pair) <= set(predictions)]
    table = image_intervals(predictions, contrasts=contrasts)
    facts = dict(part="images", task=work.name)
    return [facts | row for row in table.to_dict("records") if row["baseline"]]


def study(work):
    "Rows of one task: all trials, the choices, and the test of what was chosen"
    methods = [name for name in VARIANTS if name not in TASKS[work.name].cut]
    searches = {method: work.search(method) for method in methods}
    chosen, contrasts = choose(searches)
    rows = [row for search in searches.values() for row in search] + list(chosen.values())
    if work.base.weights:
        chosen["frozen"] = dict(settings="", head="logistic", changes=dict(methods=("frozen",)))
    runs = {}
    for method, row in chosen.items():
        runs[method], tests = work.test(method, row)
        rows += tests
    return rows + image_rows(work, runs, chosen, contrasts)


def run_row(work):
    "Row with precision, date, commit, versions and machine of a task"
    facts = record([])
    del facts["command"], facts["rows"]
    return dict(part="run", task=work.name, precision=work.base.precision) | facts


def earlier(path):
    "Rows of an existing record"
    return json.loads(path.read_text())["rows"] if path and path.exists() else []


def untested(rows, names):
    "Names of the tasks without a test in the record"
    tested = {row["task"] for row in rows if row["part"] == "test"}
    return [name for name in names if name not in tested]


def rows_of(rows, name, *parts):
    "Rows of some parts of a task"
    return [row for row in rows if row["task"] == name and row["part"] in parts]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="sample", help="folder of the four original files")
    parser.add_argument(
        "--weights", type=Path, default=Path("weights"), help="folder of pretrained weights"
    )
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, separated by commas")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds of the test")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/evidence"), help="folder of records and predictions"
    )
    add_precision(parser)
    add_options(parser)
    options = parser.parse_args()
    names = options.tasks.split(",")
    if options.toy:
        names, options.seeds = ["shirt_98_pretrained"], 1
    rows = earlier(options.out)
    for name in untested(rows, names):
        work = Work(name, options, rows_of(rows, name, "search"))
        found = study(work)
        for row in found:
            row.pop("changes", None)
        found += [*rows_of(rows, name, "run"), run_row(work)]
        rows = [row for row in rows if row["task"] != name] + found
        facts = dict(source=Path(options.source).name, labels=LABELS)
        save(record(rows, **facts), options.out)


if __name__ == "__main__":
    main()
