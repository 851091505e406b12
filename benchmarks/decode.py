"""Images per second from JPEG files, cold and warm, against what a network takes.

    python benchmarks/decode.py [--images 600] [--rounds 5] [--threads N] [--out FILE]

Draws a folder of synthetic lesions (JPEG, 600x450 pixels, as HAM10000 has them) and measures in one run, with files in the system's
memory: decoding by torchvision's transforms, the common way and once an epoch; decoding into the cache by one and by two worker
processes (cold); opening the cache (warm start); an epoch from it with and without two random views
(warm); and a training step of ResNet-18 at 64x64. Rates are medians over the rounds; an image with its two views counts once, and
the network gets one view of each. The aim: what is delivered warm must not hold ResNet-18 up.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from fastai.torch_core import default_device
from record import add_options, record, save
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import Compose, PILToTensor, Resize

from asymcl.data.isic import GROUND_TRUTH, IMAGES
from asymcl.data.own_images import image_folder
from asymcl.data.synthetic import synthetic_lesions
from asymcl.images.files import ImageFile, load_images
from asymcl.views import lesion_views

SIZE, BATCH = 64, 128


def draw(folder, images):
    "A folder with a sub-folder of melanomas and one of naevi, `images` in all"
    lesions = dict(MEL=images // 8, NV=images - images // 8)  # some with two or three photographs
    lesions = synthetic_lesions(folder / "isic", lesions, test_share=0.01)
    truth = pd.read_csv(lesions / GROUND_TRUTH.format("Training"), index_col="image")
    for image, melanoma in truth.MEL.head(images).items():
        place = folder / "photos" / ("MEL" if melanoma else "NV")
        place.mkdir(parents=True, exist_ok=True)
        (lesions / IMAGES.format("Training") / f"{image}.jpg").rename(place / f"{image}.jpg")
    return folder / "photos"


def common(photos):
    "One epoch of torchvision's ImageFolder, decoded by two workers"
    dataset = ImageFolder(photos, Compose([Resize((SIZE, SIZE)), PILToTensor()]))
    return sum(len(x) for x, _ in DataLoader(dataset, BATCH, num_workers=2))


def cold(files, workers):
    "Decode into an empty cache"
    with tempfile.TemporaryDirectory() as cache:
        return len(load_images(files, SIZE, cache=cache, workers=workers).images)


def epoch(loader, views=lambda x: x):
    "One epoch of the loader"
    n = 0
    for x, _ in loader:
        views(x)
        n += len(x)
    return n


def training(device, batch):
    "A job that takes two training steps of ResNet-18"
    model = resnet18(num_classes=2).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-5)

    def train():
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
        return 2 * len(batch[0])

    return train


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument(
        "--rounds", type=int, default=5, help="measurements of each, taken in turns"
    )
    parser.add_argument(
        "--threads", type=int, help="threads of PyTorch; default: PyTorch's own choice"
    )
    add_options(parser)
    args = parser.parse_args()
    if args.toy:
        args.images, args.rounds = 150, 1
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(default_device())
    with tempfile.TemporaryDirectory() as scratch:
        photos, cache = draw(Path(scratch), args.images), Path(scratch) / "cache"
        files = [ImageFile(str(p)) for p in sorted(photos.rglob("*.jpg"))]
        data = image_folder(photos, size=SIZE, cache=cache, shares=(0.98, 0.01, 0.01))
        loader = data.loader("train", BATCH, shuffle=True, drop_last=True)
        jobs = {
            "torchvision, 2 workers, every epoch": lambda: common(photos),
            "cold: into the cache, no worker": lambda: cold(files, 0),
            "cold: into the cache, 2 workers": lambda: cold(files, 2),
            "warm start: mapping": lambda: len(load_images(files, SIZE, cache=cache).images),
            "warm: loader": lambda: epoch(loader),
            "warm: loader + two lesion views": lambda: epoch(loader, lesion_views),
            "ResNet-18, one training step": training(device, loader.one_batch()),
        }
        rates = {name: [] for name in jobs}
        for n in range(args.rounds + 1):  # the first round warms up
            for name, job in jobs.items():
                start = time.perf_counter()
                count = job()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if n:
                    rates[name].append(count / (time.perf_counter() - start))
        size = sum(p.stat().st_size for p in photos.rglob("*.jpg")) / len(files)
    base = statistics.median(rates["ResNet-18, one training step"])
    rows = []
    for name, values in rates.items():
        median = statistics.median(values)
        rate_of = dict(least=min(values), median=median, most=max(values))
        rows.append({"images/s": name, **rate_of, "x ResNet-18": median / base})
    files_of = dict(images=len(files), source_pixels="600x450", kilobytes_each=round(size / 1000))
    facts = dict(device=str(device), **files_of, pixels=SIZE, batch=BATCH, rounds=args.rounds)
    save(record(rows, **facts), args.out)


if __name__ == "__main__":
    main()
