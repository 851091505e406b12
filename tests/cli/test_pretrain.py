"""asymcl-pretrain killed while it trains, and started again, in processes of their own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from asymcl.pretrained import describe_weights, read_weights

COMMAND = [sys.executable, "-W", "ignore", "-m", "asymcl.cli.pretrain", "--device", "cpu"]


def pretrain(*arguments, cwd):
    "The finished process of the command"
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    "An npz of 60 images without labels"
    path = tmp_path_factory.mktemp("images") / "noise.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    np.savez(path, images=pixels)
    return ["--data", "npz", "--source", path, "--unlabelled", "--batch-size", "20"]


def kill_after_an_epoch(arguments, folder, cwd):
    "Start the command, and kill it when it has kept an epoch; return its output"
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (folder / "stage_0.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    return process.communicate()[0]


@pytest.mark.kills
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_training_resumes_and_writes_the_same_bytes(images, tmp_path):
    options = [*images, "--epochs", "40"]
    whole = pretrain(*options, "--out", "whole.safetensors", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed.safetensors.training"
    again = [*options, "--out", "killed.safetensors"]
    first = kill_after_an_epoch(again, folder, tmp_path)
    assert not (tmp_path / "killed.safetensors").exists()
    second = pretrain(*again, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    epochs = [line for line in whole.stdout.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 40
    assert 0 < second.stdout.count("\nepoch ") < 40 and "resuming after epoch" in second.stdout
    assert first.count("\nepoch ") + second.stdout.count("\nepoch ") >= 39
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"whole.safetensors", "killed.safetensors"}
    bytes_of = [(tmp_path / name).read_bytes() for name in sorted(names)]
    assert bytes_of[0] == bytes_of[1]


def test_weights_and_description_without_labels(images, tmp_path):
    done = pretrain(*images, "--epochs", "1", "--out", "a.safetensors", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "60 images to train on; no labels, so no kNN score" in done.stdout
    path = tmp_path / "a.safetensors"
    about = describe_weights(path)
    pixels = np.load(images[3])["images"] / 255
    assert about["mean"] == pytest.approx([pixels.mean()], abs=1e-6)
    assert about["std"] == pytest.approx([pixels.std()], abs=1e-6)
    expected = dict(
        method="NT-Xent",
        data="noise",
        images=60,
        epochs=1,
        lr=3e-3,
        temperature=0.07,
        batch_size=20,
        seed=0,
        start="random weights",
        knn_balanced_accuracy=None,
    )
    assert {name: about[name] for name in expected} == expected
    assert {"fingerprint", "versions", "loss", "encoder"} <= about.keys()
    assert "0.0.weight" in read_weights(path)
    assert json.dumps(about, allow_nan=False)
    assert not Path(f"{path}.training").exists()


def test_another_training_is_not_continued_and_a_file_not_replaced(images, tmp_path):
    options = [*images, "--epochs", "1", "--out", "a.safetensors"]
    assert pretrain(*options, cwd=tmp_path).returncode == 0
    done = pretrain(*options, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "a.safetensors exists already" in done.stderr
    content = (tmp_path / "a.safetensors").read_bytes()
    seeded = pretrain(*options, "--overwrite", "--seed", "1", cwd=tmp_path)
    assert seeded.returncode == 0, seeded.stderr
    assert (tmp_path / "a.safetensors").read_bytes() != content
