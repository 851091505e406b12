"""tools/gpu.sh without a CUDA device, and the tests of a GPU on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_without_cuda_everything_is_listed_and_skipped(tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")  # as without a driver
    (tmp_path / "nvidia-smi").chmod(0o755)
    hidden = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="")
    records = {p: p.stat().st_mtime_ns for p in (ROOT / "benchmarks/results").glob("gpu.json")}
    done = subprocess.run(
        ["bash", ROOT / "tools/gpu.sh"], env=os.environ | hidden, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no CUDA device: every test and benchmark is skipped")
    assert "no CUDA device" in done.stdout.partition("SKIPPED")[2] and "passed" not in done.stdout
    assert records == {p: p.stat().st_mtime_ns for p in records}


@pytest.mark.slow
def test_the_tests_of_a_gpu_hold_on_the_cpu():
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "tests/test_gpu.py"]
    environment = os.environ | dict(ASYMCL_TEST_DEVICE="cpu", OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "1 skipped" in done.stdout.splitlines()[-1]  # half precision, of training alone
