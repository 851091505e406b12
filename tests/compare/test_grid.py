"""One folder of records and several processes: no run twice, none lost, none half."""

import json
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from asymcl.compare.records import read_record

COMMAND = [
    Path(sysconfig.get_path("scripts")) / "asymcl-compare",
    "--methods",
    "CE,AFCL",
    "--eta",
    "0,10",
    "--gamma",
    "0,2",
    "--train-total",
    "200",
    "--epochs",
    "2",
    "--classifier-epochs",
    "2",
    "--batch-size",
    "50",
    "--seeds",
    "2",
    "--classifier-loss",
    "cross_entropy",
    "--name",
    "grid",
]
JOBS = 2 * 5  # CE, CL, FCL, ACL and AFCL for each of two seeds


def start(folder, command=COMMAND):
    "The command in a process of its own"
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def records(folder):
    return sorted((folder / "runs" / "grid" / "records").glob("*.json"))


def metrics(folder):
    "Metrics by method and seed, from the records; as text, in which NaN equals itself"
    runs = [run for path in records(folder) for run in read_record(path)[1]]
    return {(run.method, run.seed): repr(run.metrics) for run in runs}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    "The metrics of one undisturbed process"
    folder = tmp_path_factory.mktemp("alone")
    assert start(folder).wait() == 0
    return metrics(folder)


@pytest.mark.slow
def test_two_processes_share_a_grid_and_do_no_run_twice(tmp_path, expected):
    both = [start(tmp_path) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], [
        process.stderr.read() for process in both
    ]
    assert (
        len(records(tmp_path)) == JOBS
        and not list(tmp_path.rglob("*.lock"))
        and not list(tmp_path.rglob("*.part"))
    )
    assert metrics(tmp_path) == expected


@pytest.mark.kills
@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_grid_keeps_what_was_done_and_is_resumed(tmp_path, expected, after):
    process = start(tmp_path)
    while len(records(tmp_path)) < after:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.read_bytes() for path in records(tmp_path)}
    assert after <= len(kept) < JOBS
    for content in kept.values():
        json.loads(content)
    assert start(tmp_path).wait() == 0
    assert len(records(tmp_path)) == JOBS
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert metrics(tmp_path) == expected


def test_two_processes_share_a_grid_in_which_a_cell_diverges(tmp_path):
    command = [*COMMAND, "--lr", "1e30,0.003", "--methods", "CL", "--eta", "0", "--gamma", "0"]
    (tmp_path / "runs" / "grid").mkdir(parents=True)  # another process has just made it
    both = [start(tmp_path, [*command, "--seeds", "1"]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], [
        process.stderr.read() for process in both
    ]
    kept = [(path, read_record(path)[0]["status"]) for path in records(tmp_path)]
    assert sorted(status for _, status in kept) == ["diverged", "done"]
    assert len(list(tmp_path.rglob("splits-*.csv"))) == 1
    assert len(list(tmp_path.rglob("*.predictions.csv"))) == 1
