"The bundled sample and the script that builds it"

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from asymcl.data.datasets import read_idx

ROOT = Path(__file__).parents[1]
FULL = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist


@pytest.fixture(scope="module")
def tool():
    "tools/make_sample.py as a module"
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "tools" / "make_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_first_images_of_each_class_in_the_original_order(tool):
    labels = np.array([6, 0, 3, 0, 6, 0])
    assert tool.chosen(labels, {0: 2, 6: 1}).tolist() == [0, 1, 3]
    assert tool.chosen(labels, {0: None, 6: None}).tolist() == [0, 1, 3, 4, 5]


def test_package_reads_what_the_tool_writes_and_bytes_repeat(tool, tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for out in tmp_path / "a", tmp_path / "b":
        tool.write({"x.gz": tool.idx(array)}, out)
    assert (tmp_path / "a" / "x.gz").read_bytes() == (tmp_path / "b" / "x.gz").read_bytes()
    assert torch.equal(read_idx(tmp_path / "a" / "x.gz"), torch.from_numpy(array))
    assert "Zalando" in (tmp_path / "a" / "LICENSE").read_text()


def test_other_files_than_the_originals_are_refused(tool, tmp_path):
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(ValueError, match="not the original file"):
        tool.original(tmp_path, "train-labels-idx1-ubyte")


@pytest.mark.skipif(not FULL.is_dir(), reason=f"needs the whole data set in {FULL}")
def test_sample_is_what_the_tool_builds_from_the_originals(tool):
    for name, content in tool.sample(FULL).items():
        assert gzip.decompress((ROOT / "asymcl" / "sample" / name).read_bytes()) == content, name


@pytest.mark.skipif(not FULL.is_dir(), reason=f"needs the whole data set in {FULL}")
def test_sample_training_images_stem_from_the_official_training_part_only():
    def images(folder, part):
        return {x.numpy().tobytes() for x in read_idx(folder / f"{part}-images-idx3-ubyte.gz")}

    train, test = images(FULL, "train"), images(FULL, "t10k")
    assert images(ROOT / "asymcl" / "sample", "train") <= train - test
    assert images(ROOT / "asymcl" / "sample", "t10k") <= test - train
