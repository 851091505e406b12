"""A training that is killed and started again loses nothing: the harness of benchmarks/kills.py, with a few kills."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asymcl.train.checkpoint import fit_kept

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="the harness forks, which this system cannot"
)


@pytest.fixture(scope="module", params=[1, pytest.param(6, marks=pytest.mark.kills)])
def figures(request, tmp_path_factory):
    "Figures of the harness for so many kills, and what it wrote to standard error"
    out = tmp_path_factory.mktemp("kills") / "kills.json"
    command = [
        sys.executable,
        "-W",
        "ignore",
        ROOT / "benchmarks" / "kills.py",
        "--kills",
        str(request.param),
        "--seed",
        "1",
        "--out",
        out,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(out.read_text())["rows"]
    assert figures["kills"] == request.param
    return figures | dict(printed=done.stderr)


def test_kills_lose_no_finished_epoch_and_change_no_bit(figures):
    assert figures["while_writing"] > 0 or figures["kills"] == 1
    assert (figures["epochs_lost"], figures["unreadable"], figures["other_figures"]) == (0, 0, 0)


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_signals_leave_a_usable_state_and_print_one_line(figures, name, code):
    ended = figures[name]
    assert (
        ended["exit_code"] == code
        and ended["same_figures"]
        and ended["kept"] >= ended["reported"] >= 1
    )
    lines = [line for line in figures["printed"].splitlines() if name in line]
    assert len(lines) == 1 and lines[0].startswith(
        f"stopped: {ended['kept']} finished epochs of stage_1 are kept in "
    ), figures["printed"]


DELETING = """
import os, signal, sys
from asymcl.train.checkpoint import fit_kept

class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

def fit(callbacks):
    Deleted()
    callbacks[0].before_batch()
    print("the training went on")

fit_kept(None, sys.argv[1], "training", fit)
"""


def test_a_signal_during_a_deletion_stops_the_training(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", DELETING, tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (143, "")
    assert "stopped: 0 finished epochs of training are kept" in ended.stderr


ORPHAN = """
import os, signal, sys, time
from asymcl.train.checkpoint import fit_kept

def fit(callbacks):
    if worker := os.fork():
        print(worker, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(1)
    time.sleep(600)

fit_kept(None, sys.argv[1], "training", fit)
"""


@pytest.mark.kills
def test_a_worker_that_outlives_a_killed_training_does_not_keep_its_folder(tmp_path):
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ORPHAN, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    worker, trained = int(killed.stdout), []
    try:
        os.kill(worker, 0)
        fit_kept(None, tmp_path, "training", trained.append)
    finally:
        os.kill(worker, signal.SIGKILL)
    assert trained
