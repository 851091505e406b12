"""Does memory stay flat, and is nothing left open, over a long training?

    python benchmarks/long_run.py --epochs 50 --out benchmarks/results/long_run.json

Both stages for so many epochs, every one kept in a folder: resident memory, open files, threads and child processes after each. The growth
is that from the fifth epoch, when all is allocated, to the epoch with most after it. Linux only: the figures come from /proc.
"""

import argparse
import os
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)

from fastai.callback.core import Callback  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402
from record import add_options, record, save  # noqa: E402

from asymcl.data.datasets import fashion_mnist  # noqa: E402
from asymcl.losses import AFCL  # noqa: E402
from asymcl.models import small_encoder  # noqa: E402
from asymcl.train.two_stage import TwoStageLearner  # noqa: E402


def state():
    "Resident MiB, open files, threads and children of this process"
    resident = (
        int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    )
    tasks = list(Path("/proc/self/task").iterdir())
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    return dict(
        resident=round(resident, 1),
        files=len(list(Path("/proc/self/fd").iterdir())),
        threads=len(tasks),
        children=len(children),
    )


class Watch(Callback):
    "The state of the process after each epoch"

    order = 100

    def __init__(self):
        self.seen = []

    def after_epoch(self):
        self.seen.append(state())


def summary(seen):
    "Fifth and last epoch, the most memory after the fifth, and how much more that is"
    early, most = seen[4], max(epoch["resident"] for epoch in seen[5:])
    return dict(
        fifth=early,
        last=seen[-1],
        most=most,
        growth_percent=round(100 * (most / early["resident"] - 1), 2),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=50)
    add_options(parser)
    options = parser.parse_args()
    if options.toy:
        options.epochs = 6
    if options.epochs < 6:
        parser.error(f"--epochs must be at least 6, got {options.epochs}")
    set_seed(0)
    folder, stages = tempfile.mkdtemp(), {}
    learn = TwoStageLearner(
        fashion_mnist(train_total=200 if options.toy else 1500).dls(),
        small_encoder(),
        AFCL(gamma=2.0, eta=120.0),
        classifier_loss="cross_entropy",
    )
    with learn.contrastive.no_bar(), learn.contrastive.no_logging():
        learn.fit_contrastive(options.epochs, keep=folder, cbs=(watch := Watch()))
    stages["stage_1"] = summary(watch.seen)
    head = learn.new_classifier()
    with head.no_bar(), head.no_logging():
        learn.fit_classifier(options.epochs, keep=folder, cbs=(watch := Watch()))
    stages["stage_2"] = summary(watch.seen)
    rows = [dict(stage=stage, **figures) for stage, figures in stages.items()]
    kept = len(list(Path(folder).iterdir()))
    save(record(rows, epochs=options.epochs, files_kept=kept), options.out)


if __name__ == "__main__":
    main()
