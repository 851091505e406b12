"""How long does it take to open a folder of many small images, the first time and from the cache?

    python benchmarks/open_folder.py [--images 48000] [--rounds 3] [--out benchmarks/results/open_folder.json]

Draws PNG files of 28x28 pixels in ten sub-folders and opens the folder by `image_folder`: once with an empty cache (each
file is found, read and decoded), then several times with the full one (each file is found, and its size and times are
compared with the cache).
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from record import add_options, record, save

from asymcl.data.own_images import image_folder


def draw(folder, images):
    "A folder with ten sub-folders of PNG files of noise, `images` in all"
    random = np.random.default_rng(0)
    for c in range(10):
        (folder / f"class{c}").mkdir(parents=True)
    for i in range(images):
        pixels = random.integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"class{i % 10}" / f"{i:06}.png", compress_level=1)
    return folder


def seconds(folder, cache, images):
    "Seconds to open the folder, and seconds of processor time that this process took for it"
    start, processor = time.perf_counter(), time.process_time()
    data = image_folder(folder, size=28, channels=1, cache=cache)
    assert len(data.images) == images
    return time.perf_counter() - start, time.process_time() - processor


def row(name, openings):
    "Row of the record: how often the folder was opened, medians of seconds and of processor time, and their range"
    wall, processor = zip(*openings, strict=True)
    return {
        "opening": name,
        "times": len(openings),
        "seconds": statistics.median(wall),
        "fastest": min(wall),
        "slowest": max(wall),
        "processor seconds": statistics.median(processor),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=48_000)
    parser.add_argument("--rounds", type=int, default=3, help="openings from the cache")
    add_options(parser)
    args = parser.parse_args()
    images = 50 if args.toy else args.images
    rounds = 1 if args.toy else args.rounds
    with tempfile.TemporaryDirectory() as scratch:
        folder = draw(Path(scratch) / "images", images)
        cache = Path(scratch) / "cache"
        openings = [seconds(folder, cache, images) for _ in range(1 + rounds)]
    rows = [row("first", openings[:1]), row("from the cache", openings[1:])]
    save(record(rows, images=images), args.out)


if __name__ == "__main__":
    main()
