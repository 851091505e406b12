"""Images from files with real processes: writers that are killed or come two at a time, workers, and what must not be copied."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asymcl.data.imbalance import BalancedSampler, class_counts, split_groups
from asymcl.data.own_images import BadImages, from_arrays, from_dataframe, image_folder
from asymcl.images.files import ImageFile, load_images
from asymcl.losses import AFCL
from asymcl.models import small_encoder
from asymcl.train import TwoStageLearner, cached_features

LOAD = """
import sys
from pathlib import Path
from asymcl.images.files import ImageFile, load_images
files = [ImageFile(str(p)) for p in sorted(Path(sys.argv[1]).rglob("*.png"))]
print("ready", flush=True)
loaded = load_images(files, 48, cache=sys.argv[2], workers=int(sys.argv[3]))
print(len(loaded.images), int(loaded.images.long().sum()), flush=True)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "A folder of 240 images of noise in two classes"
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(240):
        path = folder / ("rare" if i % 10 == 0 else "frequent") / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (160, 200, 3), dtype=np.uint8)).save(
            path, compress_level=1
        )
    return folder


@pytest.fixture(scope="module")
def expected(photos):
    "The images, decoded by this process alone and kept nowhere"
    return load_images(
        [ImageFile(str(p)) for p in sorted(photos.rglob("*.png"))], 48, cache=False, workers=0
    ).images


def start(photos, cache, workers=0):
    "A process that loads the images"
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(photos), str(cache), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_worker_processes_give_what_one_process_gives(photos, expected, tmp_path):
    files = [ImageFile(str(p)) for p in sorted(photos.rglob("*.png"))]
    for workers in (2, None):
        assert torch.equal(
            load_images(files, 48, cache=tmp_path / str(workers), workers=workers).images, expected
        )


@pytest.mark.kills
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_writer_leaves_nothing_that_looks_whole(photos, expected, tmp_path, workers):
    process = start(photos, tmp_path, workers)
    while not any(p.stat().st_size > 100_000 for p in tmp_path.glob("*.part")):
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # until the last worker, which has the same stdout, has ended
    assert list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.npy"))
    files = [ImageFile(str(p)) for p in sorted(photos.rglob("*.png"))]
    assert torch.equal(load_images(files, 48, cache=tmp_path).images, expected)
    assert not list(tmp_path.glob("*.part")) and len(list(tmp_path.glob("*.npy"))) == 1


@pytest.mark.slow
def test_two_writers_at_once_agree(photos, expected, tmp_path):
    writers = [start(photos, tmp_path) for _ in range(2)]
    printed = [writer.communicate()[0].split() for writer in writers]
    assert printed == [["ready", "240", str(int(expected.long().sum()))]] * 2
    assert len(list(tmp_path.glob("*.npy"))) == 1 and not list(tmp_path.glob("*.part"))


def test_mapped_images_are_neither_copied_nor_changed(photos, tmp_path):
    data = image_folder(photos, size=48, cache=tmp_path)
    content = next(tmp_path.glob("*.npy")).read_bytes()
    for split in data.splits:
        assert (
            data.loader(split, 8, device="cpu").dataset.tensors[0].data_ptr()
            == data.images.data_ptr()
        )
    if sys.platform == "linux":
        assert str(next(tmp_path.glob("*.npy"))) in Path("/proc/self/maps").read_text()
    data.images.fill_(7)
    assert next(tmp_path.glob("*.npy")).read_bytes() == content


def mapping(images):
    "Name of the file that images are mapped from, and kilobytes of it that were copied to memory"
    address, inside = images.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            first, last = (int(end, 16) for end in found.groups())
            inside, path = first <= address < last, line.split(maxsplit=5)[-1]
        elif inside and line.startswith("Anonymous:"):
            return Path(path).name, int(line.split()[1])
    raise ValueError("the images are not in this process")


class MostImages(TorchDispatchMode):
    "The most images, or views of them, in one tensor outside the mapped file"

    def __init__(self, mapped):
        super().__init__()
        self.storage, self.size, self.most = mapped.data_ptr(), mapped.nbytes, 0
        self.shape = mapped.shape[-2:]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.shape[-2:] == self.shape:
                if not 0 <= made.data_ptr() - self.storage < self.size:
                    self.most = max(self.most, len(made))
        return result


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_at_224_pixels_holds_a_batch_of_images_and_not_more(photos, tmp_path):
    rows = [(str(path), path.parent.name) for path in sorted(photos.rglob("*.png"))[::3]]
    table = pd.DataFrame(rows, columns=["path", "label"])
    data = from_dataframe(table, root=photos, size=224, cache=tmp_path)
    file = next(tmp_path.glob("*.npy")).name
    encoder = small_encoder(3)
    with MostImages(data.images) as made:
        data.fingerprint()
        learn = TwoStageLearner(data.dls(8), encoder, AFCL())
        learn.fit(1)
        learn.evaluate("test")
        learn.save(tmp_path / "model.safetensors", gallery=True)
        cached_features(data, encoder, data.channel_stats(), cache=tmp_path / "features")
    assert 16 <= made.most < 40  # two views of a batch of 8; the training split has 56 images
    for split in range(3):
        assert learn.dls[split].dataset.tensors[0].data_ptr() == data.images.data_ptr()
    assert mapping(data.images) == (file, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_skipped_rows_do_not_copy_the_other_images(photos, tmp_path):
    rows = [(str(path), path.parent.name) for path in sorted(photos.rglob("*.png"))]
    table = pd.DataFrame([*rows, (rows[0][0], "rare")], columns=["path", "label"])
    options = dict(size=32, cache=tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match="2 of 241 rows were skipped"):
        data = from_dataframe(table, root=photos, **options)
    assert len(data.images) == 239 and mapping(data.images)[0] in os.listdir(tmp_path)
    expected = load_images([ImageFile(name) for name in data.files], 32, cache=False).images
    assert torch.equal(data.images, expected)


def test_a_full_disk_is_an_error_and_leaves_no_part(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        image_folder(photos, size=48, cache=tmp_path)
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.npy"))


def test_cache_that_cannot_be_written_names_the_folder(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="pass another folder, or cache=False"):
        image_folder(photos, size=48, cache=tmp_path / "file")


def saved_thrice(folder, pictures=8):
    "A table of pictures of two classes, each saved as PNG, as BMP and as another PNG"
    random, rows = np.random.default_rng(0), []
    for i in range(2 * pictures):
        pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        label = "round" if i < pictures else "square"
        (folder / label).mkdir(parents=True, exist_ok=True)
        for name, options in (("png", {}), ("bmp", {}), ("again.png", dict(compress_level=0))):
            path = f"{label}/{i}.{name}"
            Image.fromarray(pixels).save(folder / path, **options)
            rows.append(dict(path=path, label=label, picture=i))
    return pd.DataFrame(rows)


def test_a_picture_in_several_formats_is_in_one_split(tmp_path):
    table = saved_thrice(tmp_path / "images")
    for seed in range(3):
        data = image_folder(tmp_path / "images", size=20, seed=seed, cache=tmp_path / "cache")
        held = [{x.numpy().tobytes() for x in data.images[i]} for i in data.splits.values()]
        assert sum(map(len, held)) == len(set.union(*held)) == 16
        assert sum(map(len, data.splits.values())) == len(table) == len(data.images)
    # a picture also joins the groups of its files
    given_groups = table.assign(
        thing=[f"{row.picture // 2}-{i % 3}" for i, row in table.iterrows()]
    )
    options = dict(root=tmp_path / "images", size=20, cache=tmp_path / "cache")
    data = from_dataframe(given_groups, group_column="thing", **options)
    assert len(set(data.groups.tolist())) == 8


def test_one_picture_of_two_classes_or_two_given_splits_is_a_problem(tmp_path):
    table = saved_thrice(tmp_path)
    options = dict(root=tmp_path, size=20, cache=False, workers=0)
    other_class = table.assign(label=["square", *table.label[1:]])
    text = "shows the same picture as files of the classes square, round"
    with pytest.raises(BadImages, match=text) as raised:
        from_dataframe(other_class, **options)
    assert list(raised.value.problems.file) == list(table.path[:3])
    splits = table.assign(split=(["train"] * 15 + ["valid"] * 3 + ["test"] * 6) * 2)
    data = from_dataframe(splits, split_column="split", **options)
    assert [len(i) for i in data.splits.values()] == [30, 6, 12]
    splits.loc[0, "split"] = "test"
    with pytest.raises(
        BadImages, match="0.bmp, row 1: is in train, and its group or an equal image is in test"
    ):
        from_dataframe(splits, split_column="split", **options)
    with pytest.warns(UserWarning, match="2 of 48 rows were skipped"):
        kept = from_dataframe(splits, split_column="split", on_error="skip", **options)
    assert [len(i) for i in kept.splits.values()] == [27, 6, 13]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=1, max_size=120),
    st.integers(0, 2**31),
)
def test_no_group_is_ever_in_two_splits(images, seed):
    labels, groups = (torch.tensor(column) for column in zip(*images, strict=True))
    parts = split_groups(labels, groups, (0.7, 0.15, 0.15), torch.Generator().manual_seed(seed))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels)))
    held = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, held)) == len(set(groups.tolist()))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(3, 40), min_size=2, max_size=5),
    st.integers(0, 3),
    st.floats(0, 1),
    st.integers(1, 40),
)
def test_every_batch_has_enough_of_every_class_or_raises_an_error(
    counts, at_least, alpha, batch_size
):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    if batch_size > len(labels) or at_least * len(counts) > batch_size:
        with pytest.raises(ValueError):
            BalancedSampler(labels, batch_size, alpha, at_least)
        return
    batches = list(BalancedSampler(labels, batch_size, alpha, at_least))
    assert len(batches) == len(labels) // batch_size
    for batch in batches:
        assert len(batch) == batch_size
        assert min(class_counts(labels[torch.tensor(batch).unique()], len(counts))) >= at_least


def test_groups_of_arrays_keep_together_through_the_loaders():
    images, things = (
        torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1).expand(200, 1, 4, 4),
        np.arange(200) // 4,
    )
    data = from_arrays(images, (np.arange(200) % 40 < 8).astype(int), groups=things)
    seen = [
        {
            int(
                x.mul(data.channel_stats()[1])
                .add(data.channel_stats()[0])
                .mul(255)
                .round()
                .flatten()[0]
            )
            // 4
            for x in data.loader(split, 1, device="cpu")
            for x in x[:1]
        }
        for split in data.splits
    ]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert set.union(*seen) == set(range(50))
