"""Images per second of a training step: the small encoder against torchvision's ResNet-18, interleaved in one run.

python benchmarks/encoders.py
"""

import statistics
import time

import torch

from asymcl.models import resnet_encoder, small_encoder


def step_seconds(encoder, optimizer, images):
    "Seconds of one forward pass, backward pass and optimiser step"
    start = time.perf_counter()
    encoder(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def main(batch=128, rounds=20):
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
    print(
        f"{'encoder':20} {'images/s':>10}   (batch {batch}, 1x28x28, {torch.get_num_threads()} threads, median of {rounds})"
    )
    for name, median in medians.items():
        print(f"{name:20} {batch / median:10.0f}")
    print(f"ratio {medians['resnet_encoder(18)'] / medians['small_encoder']:.1f}")


if __name__ == "__main__":
    main()
