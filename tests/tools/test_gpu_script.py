"""tools/gpu.sh without a CUDA device, and the tests of a GPU on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder, nvidia_smi, visible, *options):
    "tools/gpu.sh with this body of a command nvidia-smi and CUDA_VISIBLE_DEVICES"
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    (folder / "nvidia-smi").chmod(0o755)
    hidden = dict(PATH=f"{folder}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES=visible)
    return subprocess.run(
        ["bash", ROOT / "tools/gpu.sh", *options],
        env=os.environ | hidden,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "nvidia_smi, visible, why",
    [
        ("exit 9", "0", "nvidia-smi finds none"),  # as without a driver
        ("echo GPU 0: a card", "", "CUDA_VISIBLE_DEVICES='' hides them all"),
        ("echo GPU 0: a card", "-1", "CUDA_VISIBLE_DEVICES='-1' hides them all"),
    ],
)
def test_without_cuda_everything_is_listed_and_skipped(nvidia_smi, visible, why, tmp_path):
    records = {p: p.stat().st_mtime_ns for p in (ROOT / "benchmarks/results").glob("gpu.json")}
    done = run(tmp_path, nvidia_smi, visible)
    assert done.returncode == 0, done.stderr
    assert f"no CUDA device, {why}: every test and measurement is skipped" in done.stdout
    tests, measurements = done.stdout.split("skipped tests:")[1].split("skipped measurements:")
    assert "::test_both_stages[fp16]" in tests and "passed" not in tests
    assert "losses at n = 65536" in measurements and "training of resnet18" in measurements
    assert records == {p: p.stat().st_mtime_ns for p in records}


@pytest.mark.slow
def test_a_device_that_pytorch_cannot_use_is_reported_in_one_line(tmp_path):
    done = run(tmp_path, "echo 1.2", "99", "--here")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "finds no CUDA device with driver 1.2 and CUDA_VISIBLE_DEVICES='99'" in line


@pytest.mark.slow
def test_the_tests_of_a_gpu_hold_on_the_cpu():
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "tests/test_gpu.py"]
    environment = os.environ | dict(ASYMCL_TEST_DEVICE="cpu")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "1 skipped" in done.stdout.splitlines()[-1]  # half precision, of training alone
