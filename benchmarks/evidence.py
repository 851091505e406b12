"""Tune every method on two seeds, compare the chosen settings on ten others, and choose nothing by a test image.

python benchmarks/evidence.py --source FASHION_MNIST_FOLDER [--weights FOLDER] [--tasks NAME,NAME] [--out FILE]

The design is written down in nbs/results/scenarios.ipynb. Every method has six trials: three learning rates, each with
two values of one more setting. Settings, the averaging of AFCL, the head of CE and the best contrastive method are chosen
by the mean validation ROC AUC of seeds 100 and 101. Finished encoders are not trained again, and several processes may
share the work. The folder of weights holds the files of tools/pretrain_fashion.py.
"""

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from record import RESULTS, add_options, record, save

from asymcl.compare import compare
from asymcl.compare.experiment import data_loader
from asymcl.core.settings import Settings

SEARCH_SEEDS = (100, 101)
HEADS = ("cross_entropy", "logistic")


@dataclass(frozen=True)
class Task:
    "Classes, frequent one first, their shares of the training images, and the weights to start from"

    classes: tuple | str = ("T-shirt/top", "Shirt")
    proportions: tuple | None = (0.98, 0.02)
    long_tail_ratio: float | None = None
    weights: str | None = None


TASKS = {
    "shirt_98_pretrained": Task(weights="fashion_mnist_eight"),
    "shirt_99_5_pretrained": Task(proportions=(0.995, 0.005), weights="fashion_mnist_eight"),
    "shirt_90_pretrained": Task(proportions=(0.9, 0.1), weights="fashion_mnist_eight"),
    "coat_98_pretrained": Task(("Pullover", "Coat"), weights="without_pullover_coat.safetensors"),
    "boot_98_pretrained": Task(
        ("Sneaker", "Ankle boot"), weights="without_sneaker_boot.safetensors"
    ),
    "shirt_98_random": Task(),
    "long_tail_random": Task("all", None, long_tail_ratio=100),
    "shirt_95_pretrained": Task(proportions=(0.95, 0.05), weights="fashion_mnist_eight"),
    "shirt_99_5_random": Task(proportions=(0.995, 0.005)),
    "shirt_90_random": Task(proportions=(0.9, 0.1)),
    "coat_98_random": Task(("Pullover", "Coat")),
    "boot_98_random": Task(("Sneaker", "Ankle boot")),
    "shirt_95_random": Task(proportions=(0.95, 0.05)),
}  # the most informative first
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

    def __init__(self, name, options):
        self.name = name
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
            precision="fp32" if options.toy else "bf16",
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
        for changes in self.trials(method):
            runs = self.runs(changes, SEARCH_SEEDS)
            for head in HEADS if method == "CE" else ("logistic",):
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
        "A row for each seed and head with the chosen settings"
        return [
            dict(
                part="test",
                task=self.name,
                method=method,
                settings=row["settings"],
                head=run.varied["head"],
                seed=run.seed,
                **{
                    name: run.metrics.get(name, float("nan"))
                    for name in ("roc_auc", "unweighted_accuracy")
                },
            )
            for run in self.runs(row["changes"], self.seeds)
        ]


def readable(changes):
    "Settings of a trial in a few words"
    return ", ".join(
        value[0] if name == "methods" else f"{name} {value}" for name, value in changes.items()
    )


def best(rows):
    "Row of the highest validation ROC AUC; the first of equal ones"
    return max(rows, key=lambda row: row["valid_roc_auc"])


def study(work):
    "Rows of one task: all trials, the choices, and the test of what was chosen"
    searches = {method: work.search(method) for method in VARIANTS}
    averaging = best([best(searches["AFCL pairs"]), best(searches["AFCL batch"])])
    chosen = {
        "CE": best(searches["CE"]),
        "CL": best(searches["CL"]),
        "SupMin": best(searches["SupMin"]),
        "AFCL": averaging,
        "AFSupMin": best(searches["AFSupMin"]),
    }
    trained = max(chosen, key=lambda name: chosen[name]["valid_roc_auc"])
    contrastive = max(list(chosen)[1:], key=lambda name: chosen[name]["valid_roc_auc"])
    rows = [row for search in searches.values() for row in search]
    for method, row in chosen.items():
        bests = dict(best_trained=method == trained, best_contrastive=method == contrastive)
        rows.append(row | bests | dict(part="choice", method=method))
    tests = [row for method in chosen for row in work.test(method, chosen[method])]
    if work.base.weights:
        tests += work.test("frozen", dict(settings="", changes=dict(methods=("frozen",))))
    return rows + tests


def collect(work, folder):
    "Copy the records of a task, without the predictions"
    folder.mkdir(parents=True, exist_ok=True)
    for path in work.folder.glob("*.json"):
        shutil.copy(path, folder / path.name)


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
    add_options(parser)
    options = parser.parse_args()
    names = options.tasks.split(",")
    if options.toy:
        names, options.seeds = ["shirt_98_pretrained"], 1
    rows = []
    for name in names:
        work = Work(name, options)
        rows += study(work)
        if not options.toy:
            collect(work, RESULTS / "evidence" / name)
    for row in rows:
        row.pop("changes", None)
    save(record(rows, source=Path(options.source).name), options.out)


if __name__ == "__main__":
    main()
