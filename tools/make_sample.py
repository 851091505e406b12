"""Builds the bundled sample from the four original Fashion-MNIST files.

    python tools/make_sample.py SOURCE_FOLDER [OUT=asymcl/sample]
    python tools/make_sample.py --check SOURCE_FOLDER [OUT=asymcl/sample]

The sample is one file, fashion_mnist.npz, with the arrays train_images, train_labels, test_images and test_labels. It
holds two classes: the first 1,900 T-shirts and the first 900 shirts of the official training part, and every T-shirt
and shirt of the official test part, in the original order. The originals are recognised by the MD5 sums of their
unpacked content, so a training image can come from the training part only. `--check` writes nothing and compares the
arrays (another zlib may compress to other bytes).
"""

import argparse
import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np

FILE = "fashion_mnist.npz"
T_SHIRT, SHIRT = 0, 6
TRAIN_COUNTS = {T_SHIRT: 1900, SHIRT: 900}
SIZE_LIMIT = 2_500_000  # bytes, everything in the folder

# MD5 of the four files, unpacked
ORIGINALS = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}

LICENSE = """\
The images and labels in this folder are an excerpt of Fashion-MNIST
(https://github.com/zalandoresearch/fashion-mnist), under the following licence.

The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in
all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def original(folder, name):
    "The content of one original file, gzipped or not, or an error if it is anything else"
    zipped = folder / f"{name}.gz"
    if zipped.exists():
        content = gzip.decompress(zipped.read_bytes())
    else:
        content = (folder / name).read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != ORIGINALS[name]:
        raise ValueError(
            f"{folder / name}: MD5 {found}, expected {ORIGINALS[name]}: not the original file"
        )
    return content


def part(folder, name):
    "Images (n, 1, 28, 28) uint8 and labels (n,) int64 of the official part `name`, 'train' or 't10k'"
    images = np.frombuffer(original(folder, f"{name}-images-idx3-ubyte"), np.uint8, offset=16)
    labels = np.frombuffer(original(folder, f"{name}-labels-idx1-ubyte"), np.uint8, offset=8)
    return images.reshape(-1, 1, 28, 28), labels.astype(np.int64)


def chosen(labels, counts):
    "Positions of the first `counts[class]` images of each class (all where None), in the original order"
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in counts.items()]))


def sample(source):
    "Name -> array of the whole sample"
    arrays = {}
    whole = dict.fromkeys(TRAIN_COUNTS)
    for name, official, counts in (("train", "train", TRAIN_COUNTS), ("test", "t10k", whole)):
        images, labels = part(source, official)
        keep = chosen(labels, counts)
        arrays[f"{name}_images"] = images[keep]
        arrays[f"{name}_labels"] = labels[keep]
    return arrays


def write(arrays, out):
    "Write the sample; the bytes are the same every time, since NumPy writes no time into the archive"
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / FILE, **arrays)
    (out / "LICENSE").write_text(LICENSE, encoding="utf-8")
    size = sum(f.stat().st_size for f in out.iterdir())
    if size > SIZE_LIMIT:
        raise ValueError(
            f"{out} holds {size:,} bytes, at most {SIZE_LIMIT:,} are allowed: lower TRAIN_COUNTS"
        )
    return size


def differing(arrays, out):
    "Names of the arrays that the sample in `out` lacks or holds with other content"
    with np.load(out / FILE, allow_pickle=False) as found:
        return [
            name
            for name in arrays | dict.fromkeys(found)
            if name not in arrays
            or name not in found
            or not np.array_equal(found[name], arrays[name])
        ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder with the four original files")
    parser.add_argument(
        "out", type=Path, nargs="?", default=Path(__file__).parents[1] / "asymcl" / "sample"
    )
    parser.add_argument("--check", action="store_true", help="compare OUT with what would be built")
    args = parser.parse_args()
    arrays = sample(args.source)
    if args.check:
        names = differing(arrays, args.out)
        print(f"differs: {', '.join(names)}" if names else f"{args.out}: the same content")
        sys.exit(bool(names))
    print(f"{args.out}: {write(arrays, args.out):,} bytes")


if __name__ == "__main__":
    main()
