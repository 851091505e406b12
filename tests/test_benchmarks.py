"""Every section of every benchmark runs, with --toy, and writes its record in the common format."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
SECTIONS = {
    "large_images": ["memory", "speed", "features"],
    "training": ["stage1", "parts", "options", "options --bf16", "allocator", "stage2", "whole"],
}
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "record")
RECORDS = [path for path in sorted(RESULTS.glob("*.json")) if path.stem in SCRIPTS]
FIELDS = {"command", "date", "commit", "versions", "machine", "rows"}


def check(record):
    "What holds for every record"
    assert FIELDS <= record.keys()
    assert record["rows"] and all(isinstance(row, dict) and row for row in record["rows"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, section", [(name, s) for name in SCRIPTS for s in SECTIONS.get(name, [""])]
)
def test_benchmark_runs_and_writes_its_record(script, section, tmp_path):
    if script == "fuzz_bytes" and not find_spec("atheris"):
        pytest.skip("fuzz_bytes needs atheris, which is not installed")
    out = tmp_path / f"{script}.json"
    arguments = [*section.split(), "--toy", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", BENCHMARKS / f"{script}.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    check(record)
    assert all(record[name] for name in FIELDS)
    assert record["command"] == " ".join(["python", f"benchmarks/{script}.py", *arguments])
    assert date.fromisoformat(record["date"]) and record["machine"]["threads"] >= 1
    assert re.fullmatch(r"[0-9a-f]{12}[+]?", record["commit"])
    assert record["versions"]["torch"]
    assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b", out.read_text())


@pytest.mark.slow
def test_what_fails_on_a_gpu_is_named_and_the_rest_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # as the import sets it
    import gpu

    calls = iter(range(4))

    def late(x, y):
        if next(calls) == 3:  # after two calls that warm up and one that is timed
            raise torch.OutOfMemoryError("out of memory\nand more")
        return x.sum()

    def never(x, y):
        raise RuntimeError("no kernel")

    methods = dict(never=never, late=late, good=lambda x, y: x.sum())
    monkeypatch.setattr(gpu, "METHODS", methods)
    rows, skipped = [], []
    gpu.losses(64, 3, torch.device("cpu"), rows, skipped)
    assert skipped == ["never at n = 64: no kernel", "late at n = 64: out of memory"]
    (row,) = rows
    assert row["seconds"].keys() == {"floor", "good"} and row["ratio"].keys() == {"good"}


def test_trials_and_tests_in_a_record_are_not_run_again(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import evidence

    options = Namespace(
        work=Path(), weights=Path(), seeds=10, toy=False, precision="fp32", source="sample"
    )
    begun = []

    def trained(work, changes, seeds):
        begun.append(changes)
        scores = dict(roc_auc=0.6 + changes["lr"])
        return [SimpleNamespace(varied=dict(head="logistic"), valid_metrics=scores)]

    monkeypatch.setattr(evidence.Work, "runs", trained)
    fresh = evidence.Work("shirt_98_random", options)
    rows = fresh.search("CL")
    assert begun == fresh.trials("CL")
    begun.clear()
    assert evidence.Work("shirt_98_random", options, rows).search("CL") == rows
    assert not begun
    assert evidence.Work("shirt_98_random", options, rows[1:]).search("CL") == rows
    assert begun == fresh.trials("CL")[:1]
    tests = [dict(task="shirt_98_random", part="test"), dict(task="boot_98_random", part="search")]
    assert evidence.untested(tests, ["shirt_98_random", "boot_98_random"]) == ["boot_98_random"]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_kept_records_have_the_format_and_make_a_table(path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from record import table

    content = json.loads(path.read_text())
    for record in content if isinstance(content, list) else [content]:
        check(record)
    lines = table(content).splitlines()
    assert any(line.startswith("command: python benchmarks/") for line in lines)
    assert not list(RESULTS.glob("*.txt"))  # tables are made of the records


def test_table_of_a_record(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from record import table

    rows = [dict(n=64, seconds=dict(plain=0.25, fused=1234.5)), dict(n=1024, mib=3)]
    text = table(dict(command="python x.py", commit=None, versions=dict(torch="2"), rows=rows))
    assert text.splitlines() == [
        "command: python x.py",
        "versions: torch 2",
        "",
        "n      seconds, plain  seconds, fused  mib",
        "64               0.25           1,234",
        "1,024                                    3",
    ]
