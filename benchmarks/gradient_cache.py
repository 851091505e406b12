"""How much memory does gradient caching save, and what time does it cost?

    python benchmarks/gradient_cache.py [--batch-sizes 64,128,256,512,1024] [--chunk 64] [--rounds 3] [--threads N] [--out FILE]

One training step (forward, AFCL, backward, SGD) of a ResNet-18 with projection head on random images (1 channel, 28x28), once with
all activations kept, once embedded in chunks. Every case is a process of its own, so that none inherits the memory of another: after
two steps on 8 images, which load what is loaded only once, the process notes its highest resident size (`ru_maxrss`), takes the
steps, and notes it again. The difference is the peak of additional memory. Seconds are those of the median step; whole and cached
take turns. Prints a table and writes the record; nothing is downloaded.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from record import add_options, record, save
from torch import nn

from asymcl.gradient_cache import embed_in_chunks
from asymcl.losses import AFCL
from asymcl.models import projection_head, resnet_encoder


def trainer(chunk):
    "Function: images to seconds of one training step; chunk 0 keeps all activations"
    torch.manual_seed(0)
    model, loss = nn.Sequential(resnet_encoder(18, 1), projection_head(512)), AFCL()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(images):
        start = time.perf_counter()
        optimizer.zero_grad()
        embeddings = embed_in_chunks(model, images, chunk) if chunk else model(images)
        loss(embeddings, torch.arange(len(images)) % 2).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def highest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def case(n, chunk, steps):
    "MiB of additional memory and median seconds of a step, in this process"
    step, small, images = trainer(chunk), torch.randn(8, 1, 28, 28), torch.randn(n, 1, 28, 28)
    for _ in range(2):
        step(small)
    before = highest()
    seconds = [step(images) for _ in range(steps)]
    return highest() - before, statistics.median(seconds)


def measure(n, chunk, args):
    "The same in a process of its own"
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--case",
        f"{n},{chunk}",
        "--steps",
        str(args.steps),
    ]
    if args.threads:
        command += ["--threads", str(args.threads)]
    return map(
        float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-sizes", default="64,128,256,512,1024")
    parser.add_argument("--chunk", type=int, default=64, help="images embedded at a time")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each case")
    parser.add_argument("--steps", type=int, default=3, help="steps of each process")
    parser.add_argument(
        "--threads", type=int, help="threads of PyTorch; default: PyTorch's own choice"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    add_options(parser)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.case:
        return print(*case(*map(int, args.case.split(",")), args.steps))
    if args.toy:
        args.batch_sizes, args.chunk, args.rounds, args.steps = "8", 4, 1, 1
    rows = []
    for n in map(int, args.batch_sizes.split(",")):
        turns = [(*measure(n, 0, args), *measure(n, args.chunk, args)) for _ in range(args.rounds)]
        memory, seconds, cached_memory, cached_seconds = map(
            statistics.median, zip(*turns, strict=True)
        )
        rows.append(
            dict(
                images=n,
                mib=dict(whole=memory, cached=cached_memory),
                seconds=dict(whole=seconds, cached=cached_seconds),
                ratio=cached_seconds / seconds,
            )
        )
    facts = dict(encoder="ResNet-18", pixels=28, chunk=args.chunk)
    save(record(rows, **facts, rounds=args.rounds, steps=args.steps), args.out)


if __name__ == "__main__":
    main()
