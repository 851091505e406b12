"""Time and memory of one forward and backward pass of the losses: fused, plain, pytorch-metric-learning, and AFCL as written down.

    python benchmarks/losses.py --out benchmarks/results/losses.json

Batches of n unit embeddings of width 128 in float32, one image in ten of the rare class; AFCL with gamma = 2, eta = 120.
SupMin, NT-Xent and SupPrototype get the n embeddings as two views of n / 2 images.
Time: rivals interleaved in one process, median of the rounds, and its ratio to the floor: the two products of n x n x d that any exact
method needs (scores, and scores' gradient times embeddings), in blocks of 64 rows whose memory is reused, which is the fastest way found.
Memory: a process of its own for each figure; the high-water mark of its resident set (VmHWM of Linux, reset before the pass) less the
resident set before the pass. Inputs and their gradient are of n x 128 numbers and the latter is counted.
--out names the record; the curves go beside it, as .png.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import SupConLoss
from record import add_options, record, save

from asymcl.losses import AFCL, CL, NTXentLoss, SupMinLoss, SupPrototypeLoss

WIDTH = 128


def afcl_as_written(z, y, gamma=2.0, eta=120.0, temperature=0.07):
    "AFCL of unit embeddings, equation by equation, for autograd"
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    p = (z @ z.T / temperature).masked_fill(own, -torch.inf).softmax(1)
    positive, negative = (y[:, None] == y) & ~own, y[:, None] != y
    attraction = -(positive * (1 - p) ** gamma * p.masked_fill(own, 1).log()).sum(1) / positive.sum(
        1
    )
    repulsion = -(negative * (1 - p).log()).sum(1) / negative.sum(1)
    return (attraction + eta * repulsion).mean()


def of_views(loss):
    "A loss of n embeddings that are two views of n / 2 images"
    return lambda z, y: loss(z.unflatten(0, (-1, 2)), y[::2])


OPPOSITE = torch.eye(WIDTH)[:1] * torch.tensor([[1.0], [-1.0]])
METHODS = {
    "AFCL fused": AFCL(gamma=2.0, eta=120.0, backend="fused"),
    "CL fused": CL(backend="fused"),
    "AFCL plain": AFCL(gamma=2.0, eta=120.0, backend="plain"),
    "CL plain": CL(backend="plain"),
    "CL pytorch-metric-learning": SupConLoss(temperature=0.07),
    "AFCL autograd": afcl_as_written,
    "SupMin fused": of_views(SupMinLoss()),
    "NT-Xent fused": of_views(NTXentLoss()),
    "SupPrototype fused": of_views(SupPrototypeLoss(OPPOSITE)),
}


def batch(n):
    "n unit embeddings and their labels"
    torch.manual_seed(0)
    return F.normalize(torch.randn(n, WIDTH), dim=1), (torch.rand(n) < 0.1).long()


def one_pass(name, z, y):
    "Forward and backward"
    x = z.detach().requires_grad_()
    METHODS[name](x, y).backward()


def floor(z, rows=64):
    "The two products, block by block"
    rows = min(rows, len(z))
    scores, out = z.new_empty(rows, len(z)), z.new_empty(rows, WIDTH)
    for block in z.split(rows):
        torch.mm(block, z.T, out=scores)
        torch.mm(scores, z, out=out)


def times(n, rounds):
    "Median seconds of each method and of the floor"
    z, y = batch(n)
    calls = {
        "floor": lambda: floor(z),
        **{name: lambda name=name: one_pass(name, z, y) for name in METHODS},
    }
    seconds = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i:
                seconds[name].append(time.perf_counter() - start)  # the first round warms up
    return {name: statistics.median(s) for name, s in seconds.items()}


def status(key):
    "A line of /proc/self/status, in MiB"
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
    )
    return int(line.split()[1]) / 1024


def print_peak(name, n):
    "Run in a process of its own: additional MiB of one pass"
    one_pass(name, *batch(64))
    z, y = batch(n)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    one_pass(name, z, y)
    print(status("VmHWM") - before)


def peak(name, n):
    "Additional MiB of one pass, as printed by `print_peak`"
    return float(
        subprocess.check_output([sys.executable, __file__, "--peak", name, str(n)], text=True)
    )


def plot(rows, path):
    "Curves of time and memory over n"
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = dict(
        zip(
            METHODS,
            ["#0072B2 o-", "#56B4E9 s-", "#D55E00 o--", "#E69F00 s--", "#009E73 s:", "#CC79A7 o:"]
            + ["#999999 ^-", "#999999 v--", "#999999 d:"],
            strict=True,
        )
    )
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    sizes = [row["n"] for row in rows]
    left.plot(
        sizes,
        [1e3 * row["seconds"]["floor"] for row in rows],
        c="black",
        lw=1,
        label="floor: two products",
    )
    for name, style in styles.items():
        colour, line = style.split()
        left.plot(
            sizes,
            [1e3 * row["seconds"][name] for row in rows],
            line,
            c=colour,
            label=name,
        )
        right.plot(sizes, [row["mib"][name] for row in rows], line, c=colour, label=name)
    for ax, label in ((left, "milliseconds"), (right, "additional memory, MiB")):
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="anchors n",
            ylabel=label,
            xticks=sizes,
            xticklabels=sizes,
        )
        ax.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    left.set_title("forward and backward")
    right.set_title("peak of one pass")
    fig.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[256, 1024, 4096, 8192],
        help="anchors (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=9, help="interleaved rounds of timing (default: %(default)s)"
    )
    parser.add_argument(
        "--peak",
        nargs=2,
        metavar=("METHOD", "N"),
        help="print the additional MiB of one pass and end",
    )
    add_options(parser)
    options = parser.parse_args()
    if options.peak:
        return print_peak(options.peak[0], int(options.peak[1]))
    if options.toy:
        options.sizes, options.rounds = [64], 1
    rows = []
    for n in options.sizes:
        seconds = times(n, options.rounds)
        ratio = {name: seconds[name] / seconds["floor"] for name in METHODS}
        rows.append(
            dict(n=n, seconds=seconds, ratio=ratio, mib={name: peak(name, n) for name in METHODS})
        )
    save(record(rows, width=WIDTH, rounds=options.rounds), options.out)
    if options.out:
        plot(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
