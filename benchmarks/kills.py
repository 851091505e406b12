"""Kill a two-stage training at random moments, start it again, and see whether anything is lost.

    python benchmarks/kills.py --kills 50 --out benchmarks/results/kills.json

Each training is killed by SIGKILL until it gets through: at a moment drawn over the length of a whole training, or, every other time,
within milliseconds of the beginning of a write. After each kill the folder must hold at least the epochs that had been reported as kept,
and can be read; the figures at the end must be those of a training that was never killed, to the bit. Other signals are tried once each.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)

import torch  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402
from record import add_options, record, save  # noqa: E402

from asymcl.core.files import load_state  # noqa: E402
from asymcl.data.datasets import fashion_mnist  # noqa: E402
from asymcl.losses import ACL  # noqa: E402
from asymcl.models import small_encoder  # noqa: E402
from asymcl.train import checkpoint  # noqa: E402
from asymcl.train.describe import tensors_digest  # noqa: E402
from asymcl.train.two_stage import TwoStageLearner  # noqa: E402

EPOCHS = {"stage_1": 4, "stage_2": 6}


def train(folder, report):
    "Both stages, every epoch kept; `report` gets 'w' before a write and 'k' after it, and the figures at the end"
    real = checkpoint.save_state

    def reported(*args):
        os.write(report, b"w")
        real(*args)
        os.write(report, b"k")

    checkpoint.save_state = reported
    set_seed(0)
    data = fashion_mnist(train_total=300, seed=0)
    dls, loss = data.dls(batch_size=64), ACL(eta=10.0)
    learn = TwoStageLearner(dls, small_encoder(), loss, classifier_loss="cross_entropy")
    with learn.contrastive.no_bar(), learn.contrastive.no_logging():
        learn.fit_contrastive(EPOCHS["stage_1"], keep=folder)
    head = learn.new_classifier()
    with head.no_bar(), head.no_logging():
        learn.fit_classifier(EPOCHS["stage_2"], keep=folder)
    os.write(
        report,
        json.dumps(
            dict(
                learn.evaluate("test"), encoder=tensors_digest(learn.encoder.state_dict().values())
            )
        ).encode(),
    )


def start(folder):
    "A process that trains, and the end of the pipe that it reports to"
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reads)
            torch.set_num_threads(1)
            signal.signal(
                signal.SIGINT, signal.default_int_handler
            )  # a shell has its background jobs ignore it
            train(folder, writes)
            code = 0
        except SystemExit as ending:
            code = ending.code
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    os.close(writes)
    return child, reads


def kept(folder):
    "Finished epochs in a folder; ValueError where a state cannot be read"
    states = [load_state(folder / f"{stage}.pt") for stage in EPOCHS]
    return sum(state["done"] for state in states if state)


def run(folder, delay=None, write=None, number=signal.SIGKILL):
    "Train, and stop after `delay` seconds, or `delay` seconds after write number `write` began: report, exit status"
    child, reads = start(folder)
    report, stop, rest = (
        b"",
        None if delay is None or write is not None else time.monotonic() + delay,
        True,
    )
    os.set_blocking(reads, False)
    while rest:
        try:
            piece = os.read(reads, 2**16)
            report, rest = report + piece, bool(piece)
        except BlockingIOError:
            time.sleep(0.0005)
        if write is not None and stop is None and report.count(b"w") >= write:
            stop = time.monotonic() + delay
        if stop is not None and time.monotonic() >= stop:
            os.kill(child, number)
            stop, write = None, None
    os.close(reads)
    return report, os.waitpid(child, 0)[1]


def figures(report):
    "What a training reported at its end"
    return json.loads(report[report.index(b"{") :])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    add_options(parser)
    options = parser.parse_args()
    if options.toy:
        options.kills = 1
    draw, place = random.Random(options.seed), Path(tempfile.mkdtemp())
    begin = time.monotonic()
    whole, status = run(place / "whole")
    length, want = time.monotonic() - begin, figures(whole)
    assert status == 0, status
    counts = dict(
        kills=0, while_writing=0, trainings=0, epochs_lost=0, unreadable=0, other_figures=0
    )
    while counts["kills"] < options.kills:
        folder, done = place / f"training {counts['trainings']}", 0
        while True:
            writing = counts["kills"] % 2 == 1
            moment = (
                dict(delay=draw.uniform(0, 0.01), write=draw.randint(1, 3))
                if writing
                else dict(delay=draw.uniform(0, length))
            )
            report, status = (
                run(folder, **moment) if counts["kills"] < options.kills else run(folder)
            )
            done = max(done, 0) + report.split(b"{")[0].count(b"k")
            if status == 0:
                counts["other_figures"] += figures(report) != want
                break
            if not os.WIFSIGNALED(status):
                sys.exit(
                    f"a training ended by itself with exit code {os.waitstatus_to_exitcode(status)}"
                )
            counts["kills"] += 1
            counts["while_writing"] += report.count(b"w") > report.count(b"k")
            try:
                there = kept(folder)
                counts["epochs_lost"] += max(0, done - there)
                done = there
            except ValueError as error:
                print(error, file=sys.stderr)
                counts["unreadable"] += 1
                break
        counts["trainings"] += 1
        shutil.rmtree(folder)
    for name, number in dict(SIGTERM=signal.SIGTERM, SIGINT=signal.SIGINT).items():
        folder = place / name
        report, status = run(folder, delay=0.002, write=3, number=number)
        counts[name] = dict(
            exit_code=os.waitstatus_to_exitcode(status),
            kept=kept(folder),
            reported=report.count(b"k"),
        )
        report, status = run(folder)
        counts[name]["same_figures"] = figures(report) == want
    shutil.rmtree(place)
    facts = dict(seconds_of_a_training=round(length, 1), epochs=sum(EPOCHS.values()))
    save(record([counts], **facts), options.out)


if __name__ == "__main__":
    main()
