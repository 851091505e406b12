"""Images per second of a training step: the small encoder against torchvision's ResNet-18, interleaved in one run.

python benchmarks/encoders.py [--out FILE]
"""

import argparse
import statistics
import time

import torch
from record import add_options, record, save

from asymcl.models import resnet_encoder, small_encoder


def step_seconds(encoder, optimizer, images):
    "Seconds of one forward pass, backward pass and optimiser step"
    start = time.perf_counter()
    encoder(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    args = parser.parse_args()
    batch, rounds = (8, 1) if args.toy else (128, 20)
    images = torch.randn(batch, 1, 28, 28)
    encoders = {
        "small_encoder": small_encoder(),
        "resnet_encoder(18)": resnet_encoder(18, channels=1),
    }
    optimizers = {
        name: torch.optim.SGD(e.parameters(), lr=0.01, momentum=0.9) for name, e in encoders.items()
    }
    seconds = {name: [] for name in encoders}
    for _ in range(rounds + 2):
        for name, encoder in encoders.items():
            seconds[name].append(step_seconds(encoder, optimizers[name], images))
    medians = {name: statistics.median(s[2:]) for name, s in seconds.items()}
    base = medians["small_encoder"]
    rows = [
        {"encoder": name, "images/s": batch / median, "slower by": median / base}
        for name, median in medians.items()
    ]
    save(record(rows, batch=batch, pixels=28, rounds=rounds), args.out)


if __name__ == "__main__":
    main()
