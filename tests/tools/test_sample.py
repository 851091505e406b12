"The bundled sample and the script that builds it"

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from asymcl.data.datasets import fashion_mnist

ROOT = Path(__file__).parents[2]
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


def test_bytes_repeat_and_the_licence_is_written(tool, tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for out in tmp_path / "a", tmp_path / "b":
        tool.write(dict(x=array), out)
    assert (tmp_path / "a" / tool.FILE).read_bytes() == (tmp_path / "b" / tool.FILE).read_bytes()
    assert "Zalando" in (tmp_path / "a" / "LICENSE").read_text()
    assert tool.differing(dict(x=array), tmp_path / "a") == []
    assert tool.differing(dict(x=array + 1, y=array), tmp_path / "a") == ["x", "y"]
    assert tool.differing({}, tmp_path / "a") == ["x"]


def test_the_sample_is_one_file_without_pickled_objects():
    folder = ROOT / "asymcl" / "sample"
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "fashion_mnist.npz"]
    with np.load(folder / "fashion_mnist.npz", allow_pickle=False) as arrays:
        shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == dict(
        train_images=(2800, 1, 28, 28),
        train_labels=(2800,),
        test_images=(2000, 1, 28, 28),
        test_labels=(2000,),
    )


def test_other_files_than_the_originals_raise_an_error(tool, tmp_path):
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(ValueError, match="not the original file"):
        tool.original(tmp_path, "train-labels-idx1-ubyte")


@pytest.mark.skipif(not FULL.is_dir(), reason=f"needs the whole data set in {FULL}")
def test_sample_is_what_the_tool_builds_from_the_originals(tool):
    assert tool.differing(tool.sample(FULL), ROOT / "asymcl" / "sample") == []


@pytest.mark.skipif(not FULL.is_dir(), reason=f"needs the whole data set in {FULL}")
def test_sample_training_images_stem_from_the_official_training_part_only():
    def parts(data):
        first = data.splits["test"].min()
        images = data.images[:first], data.images[first:]
        return [{x.numpy().tobytes() for x in part} for part in images]

    train, test = parts(fashion_mnist())
    official_train, official_test = parts(fashion_mnist("all", 10 * [1], FULL))
    assert train <= official_train - official_test
    assert test <= official_test - official_train
