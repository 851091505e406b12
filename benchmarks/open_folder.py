"""How long does it take to open a folder of many small images, the first time and from the cache?

    python benchmarks/open_folder.py [--images 48000] [--rounds 3] [--out benchmarks/results/open_folder.json]

Draws PNG files of 28x28 pixels in ten sub-folders and opens the folder by `image_folder`: once with an empty cache (each
file is found, read and decoded), then several times with the full one (each file is found and read, and its contents
are compared with the cache by SHA-256). Prints seconds and writes them as JSON. A toy run takes seconds: `--images 500`.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from asymcl.own_images import image_folder


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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=48_000)
    parser.add_argument("--rounds", type=int, default=3, help="openings from the cache")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = draw(Path(scratch) / "images", args.images)
        cache = Path(scratch) / "cache"
        first, _ = seconds(folder, cache, args.images)
        cached = [seconds(folder, cache, args.images) for _ in range(args.rounds)]
    record = dict(
        command=f"python benchmarks/open_folder.py --images {args.images} --rounds {args.rounds}",
        versions={name: version(name) for name in ("asymcl", "torch", "pillow", "pandas")},
        machine=dict(
            cores=len(os.sched_getaffinity(0)),
            threads=torch.get_num_threads(),
            processor=platform.machine(),
            python=platform.python_version(),
        ),
        images=args.images,
        seconds_first=round(first, 2),
        seconds_cached=[round(wall, 2) for wall, _ in cached],
        processor_seconds_cached=[round(processor, 2) for _, processor in cached],
    )
    wall, processor = (statistics.median(column) for column in zip(*cached, strict=True))
    print(
        f"{args.images} images: {first:.1f} s the first time, "
        f"{wall:.1f} s from the cache (median of {args.rounds}; {processor:.1f} s of processor time)"
    )
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
