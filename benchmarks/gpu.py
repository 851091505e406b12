"""What the losses and training cost on a GPU; a part of tools/gpu.sh, which also runs the tests that need one.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

losses: a forward and backward pass of n unit embeddings of width 128 in float32, as in losses.py: fused, plain, pytorch-metric-learning and
        AFCL left to autograd, beside the two products of n x n x d that any exact method needs, in the fastest of several blocks. Medians
        of interleaved rounds; MiB is the most that a pass adds to what is allocated.
training: images per second of an epoch of stage 1 by the learner and by a bare loop, as in training.py.
learner: the most MiB that an epoch of the learner alone adds to what is allocated, its images included, and what stage1 of training.py
        says beside its rows.

The record is written after every size and encoder. Its list `skipped` names what failed, as for want of memory, and what had not begun
after --seconds. On the CPU only with --toy.
"""

import argparse
import statistics
import time
from functools import partial

import torch
from losses import METHODS, WIDTH, batch, floor
from record import add_options, record, save, write
from training import BATCH, make_data, make_encoder, quiet, stage1

from asymcl.losses import AFCL
from asymcl.train.two_stage import TwoStageLearner

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
    "The most MiB that a call adds to what is allocated"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = allocated(device)
    call()
    return allocated(device) - before


def tried(call, name, skipped):
    "Whether a call ends well; where it does not, `skipped` gets its name and the first line of the error"
    try:
        call()
    except RuntimeError as error:  # that the memory does not suffice is one
        reason = str(error).partition("\n")[0]
        skipped.append(f"{name}: {reason}")
        return False
    return True


def losses(n, rounds, device, rows, skipped):
    "Adds a row of the losses to `rows`, and what failed to `skipped`"
    z, y = (tensor.to(device) for tensor in batch(n))
    calls = {name: partial(one_pass, name, z, y) for name in METHODS}
    calls |= {f"floor, {b}": partial(floor, z, b) for b in BLOCKS if b <= max(n, BLOCKS[0])}
    took, mib = {name: [] for name in calls}, {}

    def warm_up(name):
        calls[name]()
        mib[name] = added(calls[name], device)

    def timed(name):
        took[name].append(seconds(calls[name], device))

    for job in [warm_up] + rounds * [timed]:
        for name in list(calls):
            if not tried(partial(job, name), f"{name} at n = {n}", skipped):
                del calls[name]
                torch.cuda.empty_cache()
    medians = {name: statistics.median(took[name]) for name in calls}
    floors = [medians.pop(name) for name in list(medians) if name.startswith("floor")]
    if not floors:  # after an illegal access the device does nothing any more
        return
    least = min(floors)
    row = dict(section="losses", n=n, seconds=dict(floor=least) | medians)
    row["ratio"] = {name: median / least for name, median in medians.items()}
    rows.append(row | dict(mib={name: mib[name] for name in medians}))


def epoch(args):
    "One epoch of stage 1 by the learner alone"
    learn = TwoStageLearner(make_data(args, args.batches).dls(BATCH), make_encoder(args), AFCL())
    quiet(learn.contrastive)
    learn.fit_contrastive(1, 1e-3)


def training(encoder, size, batches, rounds, device, rows, skipped):
    "Adds rows of the learner and the bare loops with an encoder to `rows`, and one of the learner alone"
    args = argparse.Namespace(
        encoder=encoder, size=size, channels_last=True, batches=batches, rounds=rounds
    )
    mib = added(partial(epoch, args), device)
    rivals, facts = stage1(args)
    of = dict(encoder=encoder, pixels=size)
    rows += [dict(section="training", **of, **row) for row in rivals]
    rows.append(dict(section="learner", **of, mib=mib, **facts))


def planned(toy, rounds, training_rounds, device):
    "What is measured: name to a function of `rows` and `skipped`"
    sizes, encoders = ([64], {"small": 28}) if toy else (SIZES, ENCODERS)
    jobs = {f"losses at n = {n}": partial(losses, n, rounds, device) for n in sizes}
    for encoder, size in encoders.items():
        jobs[f"training of {encoder} at {size} pixels"] = partial(
            training, encoder, size, 1 if toy else None, training_rounds, device
        )
    return jobs


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=240, help="begin nothing after that")
    parser.add_argument("--rounds", type=int, default=9, help="of the losses")
    parser.add_argument("--training-rounds", type=int, default=10, help="epochs of each rival")
    parser.add_argument("--list", action="store_true", help="say what is measured, and end")
    add_options(parser)
    args = parser.parse_args()
    if args.toy:
        args.rounds = args.training_rounds = 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    jobs = planned(args.toy, args.rounds, args.training_rounds, device)
    if args.list:
        return print("\n".join(jobs))
    if device.type == "cpu" and not args.toy:
        return print("no CUDA device: nothing is measured and no record is written")
    begin, rows, skipped = time.monotonic(), [], []

    def content():
        return record(
            rows,
            width=WIDTH,
            batch=BATCH,
            rounds=dict(losses=args.rounds, training=args.training_rounds),
            float32_products=torch.get_float32_matmul_precision(),
            tf32_convolutions=torch.backends.cudnn.allow_tf32,
            skipped=skipped + [f"{name}: no time left" for name in jobs],
        )

    for name in list(jobs):
        if time.monotonic() - begin > args.seconds:
            break
        print(name, flush=True)
        tried(partial(jobs.pop(name), rows, skipped), name, skipped)
        if args.out:
            write(content(), args.out)
    done = content()
    for line in done["skipped"]:
        print(f"skipped: {line}")
    save(done, args.out)


if __name__ == "__main__":
    main()
