"""What the losses and training cost on a GPU; a part of tools/gpu.sh, which also runs the tests that need one.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

losses: a forward and backward pass of n unit embeddings of width 128 in float32, as in losses.py: fused, plain, pytorch-metric-learning and
        AFCL left to autograd, beside the two products of n x n x d that any exact method needs, in the fastest of several blocks. Medians
        of interleaved rounds; MiB is the most that a pass adds to what is allocated. What does not fit the memory is left out and named.
training: images per second of an epoch of stage 1 by the learner and by a bare loop, as in training.py, and the most memory it takes.

--seconds ends the measurement: sizes that have not begun by then are left out and named, too. On the CPU only with --toy.
"""

import argparse
import statistics
import time
from functools import partial

import torch
from losses import METHODS, WIDTH, batch, floor
from record import add_options, record, save
from training import BATCH, stage1

SIZES = [256, 1024, 4096, 16384, 65536]
BLOCKS = [64, 1024, 8192]
ENCODERS = {"small": 28, "resnet18": 64}  # and the side of the images


def wait(device):
    "Until the device has done what it was given"
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_pass(name, z, y):
    "Forward and backward"
    x = z.detach().requires_grad_()
    METHODS[name](x, y).backward()


def seconds(call, device):
    "Seconds of one call"
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def allocated(device):
    "The most MiB that were allocated since the last reset"
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def added(call, device):
    "MiB that a call allocates at most, beside what is allocated"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = allocated(device)
    call()
    return allocated(device) - before


def measure(n, rounds, device):
    "A row of the losses, and what did not fit the memory"
    z, y = (tensor.to(device) for tensor in batch(n))
    calls = {name: partial(one_pass, name, z, y) for name in METHODS}
    calls |= {f"floor, {b}": partial(floor, z, b) for b in BLOCKS if b <= max(n, BLOCKS[0])}
    mib, skipped = {}, []
    for name, call in list(calls.items()):
        try:
            call()  # warms up
            mib[name] = added(call, device)
        except torch.OutOfMemoryError:
            del calls[name]
            skipped.append(f"{name} at n = {n}: out of memory")
            torch.cuda.empty_cache()
    took = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            took[name].append(seconds(call, device))
    medians = {name: statistics.median(values) for name, values in took.items()}
    least = min(medians.pop(name) for name in list(medians) if name.startswith("floor"))
    ratio = {name: median / least for name, median in medians.items()}
    mib = {name: mib[name] for name in medians}
    return dict(n=n, seconds=dict(floor=least) | medians, ratio=ratio, mib=mib), skipped


def training(encoder, size, toy, device):
    "Rows of the learner and the bare loops with an encoder"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    args = argparse.Namespace(
        encoder=encoder, size=size, channels_last=True, batches=1 if toy else None
    )
    args.rounds = 1 if toy else 10
    rows, facts = stage1(args)
    rows = [{"encoder": encoder, "pixels": size, **row} for row in rows]
    return rows, {encoder: dict(mib=allocated(device), **facts)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=270, help="begin nothing after that")
    parser.add_argument("--rounds", type=int, default=9)
    add_options(parser)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.toy:
        return print("no CUDA device: nothing is measured and no record is written")
    begin, rows, skipped, facts = time.monotonic(), [], [], {}

    def late():
        return time.monotonic() - begin > args.seconds

    for encoder, size in {"small": 28}.items() if args.toy else ENCODERS.items():
        if late():
            skipped.append(f"training of {encoder}: no time left")
            continue
        trained, fact = training(encoder, size, args.toy, device)
        rows += [dict(section="training", **row) for row in trained]
        facts |= fact
    for n in [64] if args.toy else SIZES:
        if late():
            skipped.append(f"losses at n = {n}: no time left")
            continue
        row, left_out = measure(n, 1 if args.toy else args.rounds, device)
        rows.append(dict(section="losses", **row))
        skipped += left_out
    for line in skipped:
        print(f"skipped: {line}")
    save(record(rows, width=WIDTH, batch=BATCH, training=facts, skipped=skipped), args.out)


if __name__ == "__main__":
    main()
