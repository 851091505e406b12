"""Do the loader and the random views keep up with a network?

    python benchmarks/loader.py [--rounds 15] [--batch-size 128] [--threads N] [--out FILE]

Measures, in turns within one run, how many images a second (a) torchvision's ResNet-18 trains on (1 channel, 28x28
pixels, forward, backward and SGD step) and (b) `ImageLoader` with `random_views` delivers, two views of each image, on
the bundled sample. An image with its two views counts once in (b), and the network gets one view of each in (a). Prints
medians over the rounds with the quartiles, and their ratio; the aim is 20. No data is downloaded.
"""

import argparse
import statistics
import time

import torch
from fastai.torch_core import default_device
from record import add_options, record, save
from torch import nn
from torchvision.models import resnet18

from asymcl.data.datasets import fashion_mnist
from asymcl.views import random_views

AIM = 20  # images delivered for each image trained on


def resnet(device):
    "ResNet-18 for one channel and two classes, with the published recipe's optimizer"
    model = resnet18(num_classes=2)
    model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    model = model.to(device).train()
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-5)


def train(model, optimizer, batches):
    "Train on the batches; the number of images"
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return sum(len(x) for x, _ in batches)


def deliver(loader, augment):
    "One epoch of the loader; the number of images"
    n = 0
    for x, _ in loader:
        augment(x)
        n += len(x)
    return n


def rate(job, device):
    "Images a second of a job that returns how many images it handled"
    start = time.perf_counter()
    n = job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return n / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="measurements of each, taken in turns"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--threads", type=int, help="threads of PyTorch; default: PyTorch's own choice"
    )
    add_options(parser)
    args = parser.parse_args()
    if args.toy:
        args.rounds, args.batch_size = 2, 8
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(default_device())
    loader = fashion_mnist().loader("train", args.batch_size, shuffle=True, drop_last=True)
    batches = [batch for batch, _ in zip(loader, range(2), strict=False)]
    model, optimizer = resnet(device)
    jobs = {
        "ResNet-18, one training step": lambda: train(model, optimizer, batches),
        "loader": lambda: deliver(loader, lambda x: x),
        "loader + two random views": lambda: deliver(loader, random_views),
    }
    rates = {name: [] for name in jobs}
    for n in range(args.rounds + 1):  # the first round warms up
        for name, job in jobs.items():
            measured = rate(job, device)
            if n:
                rates[name].append(measured)
    base = statistics.median(rates["ResNet-18, one training step"])
    rows = []
    for name, values in rates.items():
        low, median, high = statistics.quantiles(values, n=4)
        rate_of = dict(low=low, median=median, high=high)
        rows.append({"images/s": name, **rate_of, "x ResNet-18": median / base})
    facts = dict(device=str(device), batch=args.batch_size, rounds=args.rounds)
    save(record(rows, **facts, aim=f"{AIM} x ResNet-18 for loader + two random views"), args.out)


if __name__ == "__main__":
    main()
