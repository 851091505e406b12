"""How fast is training: against a bare PyTorch loop, against a frozen encoder run every epoch, against the usual recipe?

    python benchmarks/training.py stage1 [--encoder small] [--size 28] [--channels-last] [--batches 13] [--rounds 15]
    python benchmarks/training.py parts   [the same]
    python benchmarks/training.py options [the same] [--bf16] [--no-compile]
    python benchmarks/training.py allocator [the same]
    python benchmarks/training.py stage2  [--encoder small] [--channels-last] [--rounds 7]
    python benchmarks/training.py whole   [--encoder small] [--method AFCL] [--epochs 6] [--classifier-epochs 30] [--rounds 5]

Each section trains its rivals in turns within one run and records the median, the quartiles and the median of the ratios within a
round; the first round warms up and is not counted (stage2 and whole warm up on one epoch instead, and their rounds are seeds).
Everything is on the bundled sample, 90:10; other sizes than 28 are its images enlarged. An image with its two views counts once.

stage1: epochs of `TwoStageLearner` with `random_views`, without bars and logging, against a loop in plain PyTorch with the same
        encoder, projection head, loss, views, batches on the device, AdamW without decay of biases and norms, and one-cycle schedule.
        Training is compared with training; the learner's validation is printed apart. Aim: 0.95 of the bare loop.
parts:  the shares of a step of that bare loop, and of fastai's optimiser beside it.
options: steps of the network with channels-last memory, bfloat16, torch.compile; its compilation, and the steps that pay for it.
allocator: such steps in processes of their own, in turns, as glibc manages memory and with `--keep-memory`, which any section takes.
stage2: ten epochs of the classification head on cached features, against ten that run the frozen encoder. Aim: 10.
whole:  `run_method` against per-item PIL transforms in a PyTorch DataLoader, a bare loop, and a frozen encoder run every epoch of
        stage 2, at equal epochs. Aim: 2, and the same accuracy.
"""

import argparse
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # a compilation is timed as the first one

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.data.core import DataLoaders
from fastai.optimizer import Adam
from fastai.torch_core import default_device, set_seed
from PIL import Image
from record import add_options, record, save
from torch import nn
from torchvision import transforms

from asymcl.compare.runs import batch_size_of, contrastive_loss, run_method
from asymcl.core.settings import Settings, stage_1_rate
from asymcl.data.datasets import ImageData, fashion_mnist
from asymcl.losses import AFCL
from asymcl.metrics import evaluate_predictions
from asymcl.models import (
    classification_head,
    encoder_width,
    projection_head,
    resnet_encoder,
    small_encoder,
)
from asymcl.train.metrics import RocAuc, UnweightedAccuracy
from asymcl.train.two_stage import TwoStageLearner
from asymcl.views import random_views

BATCH = 128


# What the sections share


def make_data(args, batches=None, seed=0):
    "The bundled sample, with so many training images as make `batches`, enlarged to the size asked for"
    data = fashion_mnist(train_total=batches and batches * BATCH, seed=seed)
    if args.size == 28:
        return data
    images = (
        F.interpolate(
            data.images.float(), size=(args.size, args.size), mode="bilinear", antialias=True
        )
        .round()
        .byte()
    )
    return ImageData(
        images, data.labels, data.classes, data.splits, data.name, data.source, data.seed
    )


def make_encoder(args):
    "A fresh encoder, in channels-last memory if asked for"
    encoder = small_encoder() if args.encoder == "small" else resnet_encoder(18, channels=1)
    return encoder.to(memory_format=torch.channels_last) if args.channels_last else encoder


def parameter_groups(params, wd):
    "Matrices and filters with weight decay, biases and norms without"
    params = list(params)
    return [
        dict(params=[p for p in params if p.ndim > 1], weight_decay=wd),
        dict(params=[p for p in params if p.ndim <= 1], weight_decay=0.0),
    ]


def adamw(params, fused=True, lr=1e-3):
    "PyTorch's AdamW with fastai's constants"
    return torch.optim.AdamW(
        parameter_groups(params, 0.01), lr=lr, betas=(0.9, 0.99), eps=1e-5, fused=fused
    )


def one_cycle(optimizer, lr, steps):
    "fastai's one-cycle schedule"
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.25, final_div_factor=4000
    )


def now():
    "Seconds on the clock when CUDA, where there is one, has done what it was given"
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(job):
    "Seconds that a job takes"
    start = now()
    job()
    return now() - start


def keep_memory():
    "Make glibc keep freed memory for the next step (no pages given back, no mappings of their own for large tensors)"
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(-1, 2**31 - 1) and libc.mallopt(-4, 0)):
        raise OSError("mallopt failed")  # M_TRIM_THRESHOLD, M_MMAP_MAX


def quiet(learn):
    "The fastai Learner without bars and logging"
    learn.create_mbar, learn.logger = False, lambda *_: None
    if hasattr(learn, "progress"):
        learn.remove_cb(learn.progress)
    return learn


def in_turns(jobs, rounds):
    "Seconds of each job (name to function), `rounds` times in turns after one that warms up"
    times = {name: [] for name in jobs}
    for n in range(rounds + 1):
        for name, job in jobs.items():
            t = job()
            if n:
                times[name].append(t)
    return times


def spread(values):
    "Median and quartiles"
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return dict(median=median, low=low, high=high)


def ratios(over, under):
    "Median and quartiles of the ratios within a round"
    return spread([a / b for a, b in zip(over, under, strict=True)])


# Stage 1


def bare_batches(images, labels, mean, std):
    "Shuffled batches of two normalised tensors that are on the device already"
    for chosen in torch.randperm(len(images)).split(BATCH):
        if len(chosen) == BATCH:
            yield (images[chosen].float() / 255 - mean) / std, labels[chosen]


def bare_epoch(model, optimizer, loss_function, batches, views=random_views, schedule=None):
    "An epoch of stage 1 as one would write it in plain PyTorch"
    model.train()
    for x, y in batches:
        v = views(x)
        loss = loss_function(model(v.flatten(0, 1)).unflatten(0, v.shape[:2]), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule:
            schedule.step()


def bare_model(args, data, device):
    "Encoder and projection head"
    encoder = make_encoder(args)
    return nn.Sequential(
        encoder, projection_head(encoder_width(encoder, data.images[:2].float()))
    ).to(device)


class TrainingSeconds(Callback):
    "Notes the seconds from the first to the last batch of each epoch"

    order = -100

    def before_train(self):
        self.start = now()

    def after_train(self):
        self.learn.training_seconds = now() - self.start


def same_steps(args, data):
    "Largest difference of a weight, relative to the largest weight, after an epoch of the learner and of the bare loop from one start"
    set_seed(0)
    learn = TwoStageLearner(data.dls(BATCH), make_encoder(args), AFCL())
    start = {k: v.clone() for k, v in learn.contrastive.model.state_dict().items()}
    set_seed(1)
    quiet(learn.contrastive).fit(1, 1e-3)
    model = bare_model(args, data, torch.device(default_device()))
    model.load_state_dict(start)
    set_seed(1)
    bare_epoch(model, adamw(model.parameters()), AFCL(), learn.dls.train)
    pairs = list(zip(learn.contrastive.model.parameters(), model.parameters(), strict=True))
    return max((a - b).abs().max().item() for a, b in pairs) / max(
        b.abs().max().item() for _, b in pairs
    )


def stage1(args):
    "Epochs of the learner and of bare loops, in turns"
    data, device = make_data(args, args.batches), torch.device(default_device())
    train = data.splits["train"]
    images, labels = data.images[train].to(device), data.labels[train].to(device)
    mean, std = (s.to(device)[:, None, None] for s in data.channel_stats())
    ready = [(x, y) for x, y in bare_batches(images, labels, mean, std)]
    views = random_views(ready[0][0])
    n, lr = len(ready) * BATCH, 3e-3

    def bare(
        fused, batches=lambda: bare_batches(images, labels, mean, std), make_views=random_views
    ):
        model = bare_model(args, data, device)
        optimizer = adamw(model.parameters(), fused)
        schedule = one_cycle(optimizer, lr, len(ready) * (args.rounds + 1))
        return lambda: seconds(
            lambda: bare_epoch(model, optimizer, AFCL(), batches(), make_views, schedule)
        )

    rest = {}

    def learner(name, guards=True, **kwargs):
        learn = TwoStageLearner(
            data.dls(BATCH),
            make_encoder(args),
            AFCL(),
            guards=guards,
            cbs=TrainingSeconds(),
            **kwargs,
        )
        quiet(learn.contrastive)

        def job():
            whole = seconds(lambda: learn.fit_contrastive(1, lr))
            rest.setdefault(name, []).append(whole - learn.contrastive.training_seconds)
            return learn.contrastive.training_seconds

        return job

    jobs = {
        "bare loop, fused AdamW": bare(True),
        "bare loop, AdamW as PyTorch has it": bare(False),
        "the same, batches and views ready": bare(True, lambda: ready, lambda x: views),
        "learner, as it is": learner("as it is"),
        "learner, fastai's Adam": learner("Adam", opt_func=Adam),
        "learner, without its guards": learner("unguarded", guards=False),
    }
    jobs["bare loop, fused AdamW, batches and views ready"] = jobs.pop(
        "the same, batches and views ready"
    )
    times = in_turns(jobs, args.rounds)
    base = times["bare loop, fused AdamW"]
    rows = [
        {
            "stage 1": name,
            "images/s": spread([n / t for t in took]),
            "bare / it": ratios(base, took),
        }
        for name, took in times.items()
    ]
    return rows, dict(
        validation_images=len(data.splits["valid"]),
        validation_ms=1000 * statistics.median(rest["as it is"][1:]),
        training_images=n,
        training_ms=1000 * statistics.median(times["learner, as it is"]),
        weights_differ_from_bare_loop=same_steps(args, data),
    )


def parts(args):
    "What a step of the bare loop spends where"
    data, device = make_data(args, args.batches), torch.device(default_device())
    loader = data.loader("train", BATCH, shuffle=True, drop_last=True)
    model, loss_function = bare_model(args, data, device), AFCL()
    other = bare_model(args, data, device)
    optimizers = {
        "fused AdamW": adamw(model.parameters()),
        "fastai's Adam": Adam(list(other.parameters()), lr=1e-3),
    }
    times = {}

    def note(name, job):
        start = now()
        result = job()
        times.setdefault(name, []).append(now() - start)
        return result

    for _ in range(args.rounds + 1):
        batches = iter(loader)
        for _ in range(len(loader)):
            x, y = note("batch from the loader", lambda batches=batches: next(batches))
            x, y = note(
                "two random views",
                lambda x=x, y=y: (random_views(x).flatten(0, 1), y),
            )
            z = note("forward", lambda x=x: model(x).unflatten(0, (-1, 2)))
            loss = note("loss", lambda z=z, y=y: loss_function(z, y))
            note("backward", loss.backward)
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                q.grad = p.grad.clone()
            for name, optimizer in optimizers.items():
                note(f"step of {name}", optimizer.step)
                note(f"zero_grad of {name}", optimizer.zero_grad)
    medians = {name: 1000 * statistics.median(t[len(loader) :]) for name, t in times.items()}
    total = sum(t for name, t in medians.items() if "fastai" not in name)
    rows = [
        {"part of a step": name, "ms": t, "share": t / total, "instead": "fastai" in name}
        for name, t in medians.items()
    ]
    return rows, dict(
        step_ms=total,
        share_of_data=(medians["batch from the loader"] + medians["two random views"]) / total,
    )


# Options


def stepper(args, channels_last=False, bf16=False, compiled=False):
    "A function that makes one training step on ready views and returns its seconds"
    set_seed(0)
    device = torch.device(default_device())
    x = torch.randn(2 * BATCH, 1, args.size, args.size, device=device)
    y = torch.randint(2, (BATCH,), device=device)
    encoder = small_encoder() if args.encoder == "small" else resnet_encoder(18, channels=1)
    encoder = encoder.to(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    model = nn.Sequential(encoder, projection_head(encoder_width(encoder, x[:2].cpu()))).to(device)
    optimizer, loss_function = adamw(model.parameters()), AFCL()
    if compiled:
        model.compile()

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            z = model(x).unflatten(0, (-1, 2))
        loss_function(z, y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: seconds(step)


def allocator(args):
    "Steps and page faults in processes of their own, by the way that memory is managed, in turns"
    found = {"as glibc has it": [], "--keep-memory": []}
    for _ in range(args.rounds):
        for name, lines in found.items():
            command = [
                sys.executable,
                __file__,
                "step",
                "--encoder",
                args.encoder,
                "--size",
                str(args.size),
            ]
            command += args.channels_last * ["--channels-last"] + ("keep" in name) * [
                "--keep-memory"
            ]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            lines.append([float(v) for v in output.splitlines()[-1].split()])
    base = [line[0] for line in found["as glibc has it"]]
    rows = []
    for name, lines in found.items():
        took, faults, peak = zip(*lines, strict=True)
        rows.append(
            {
                "training step": name,
                "ms": spread(took),
                "glibc / it": ratios(base, took),
                "page faults": statistics.median(faults),
                "peak MiB": statistics.median(peak),
            }
        )
    return rows, {}


def step(args, n=20):
    "For `allocator`: median milliseconds and page faults of a step, peak MiB of the process"
    job = stepper(args, args.channels_last)
    for _ in range(3):
        job()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = [job() for _ in range(n)]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(1000 * statistics.median(times), (usage.ru_minflt - before) / n, usage.ru_maxrss / 1024)
    sys.exit()  # `allocator` keeps the record


def options(args):
    "Training steps of the network with ready views, one option each, in turns"
    names = ["plain", "channels-last"] + args.bf16 * ["bf16", "bf16 + channels-last"]
    names += (not args.no_compile) * [
        "compiled + channels-last"
    ]  # one: a second compilation in a process is quicker than the first
    steps = {
        name: stepper(args, "channels-last" in name, "bf16" in name, "compiled" in name)
        for name in names
    }
    first = {name: sum(step() for _ in range(3)) for name, step in steps.items()}
    times = in_turns(steps, args.rounds)
    eager = min(names[:2], key=lambda name: statistics.median(times[name]))
    rows = []
    for name, took in times.items():
        row = {
            "training step": name,
            "ms": spread([1000 * t for t in took]),
            "plain / it": ratios(times["plain"], took),
        }
        if "compiled" in name:
            median = statistics.median(took)
            cost, gain = first[name] - 3 * median, statistics.median(times[eager]) - median
            row["compilation, s"] = cost
            row["steps to pay for it"] = cost / gain if gain > 0 else "never"
        rows.append(row)
    return rows, dict(steps_that_pay_against=eager)  # validation's shapes are compiled on top


# Stage 2


class Frozen(nn.Module):
    "A head on an encoder that stays in evaluation mode and gets no gradient"

    def __init__(self, encoder, head):
        super().__init__()
        self.encoder, self.head = encoder.requires_grad_(False).eval(), head

    def train(self, mode=True):
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x):
        with torch.no_grad():
            features = self.encoder(x)
        return self.head(features)


@torch.no_grad()
def frozen_validation(model, loader):
    "Unweighted accuracy and ROC AUC of a two-class model on a loader"
    model.eval()
    p, y = (torch.cat(o) for o in zip(*[(model(x).softmax(1), y) for x, y in loader], strict=True))
    return evaluate_predictions(p.cpu(), y.cpu(), ["0", "1"])


def bare_frozen(encoder, width, train, valid, epochs, lr):
    "Stage 2 in plain PyTorch: the frozen encoder is run on training and validation images in every epoch"
    model = Frozen(encoder, classification_head(width, 2)).to(next(encoder.parameters()).device)
    optimizer = adamw(model.head.parameters())
    schedule = one_cycle(optimizer, lr, epochs * len(train))
    for _ in range(epochs):
        model.train()
        for x, y in train:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        frozen_validation(model, valid)
    return model


def stage2(args, epochs=10, lr=1e-2):
    "Ten epochs of the head by the learner, by the same Learner on images, and by a bare loop"
    results = {}
    for seed in range(args.rounds):
        data = make_data(args, args.batches, seed)
        set_seed(seed)
        dls, encoder = data.dls(BATCH), make_encoder(args)
        learn = TwoStageLearner(dls, encoder, AFCL(), classifier_loss="cross_entropy")
        quiet(learn.contrastive).fit(1 if args.encoder == "resnet18" else 3, 1e-3)

        def loaders(data=data):
            return data.loader("train", BATCH, shuffle=True), data.loader("valid", BATCH)

        cached_parts = []

        def cached(learn=learn, cached_parts=cached_parts):
            cached_parts.append(seconds(lambda: quiet(learn.new_classifier())))
            learn.fit_classifier(epochs, lr)
            return learn.classifier.model

        def every_epoch(learn=learn, loaders=loaders):
            dls = DataLoaders(*loaders(), device=default_device())
            model = Frozen(learn.encoder, classification_head(learn.width, 2))
            other = Learner(
                dls,
                model,
                loss_func=F.cross_entropy,
                opt_func=learn.opt_func,
                metrics=[UnweightedAccuracy(), RocAuc()],
            )
            quiet(other).fit_one_cycle(epochs, lr)
            return model.head

        def bare(learn=learn, loaders=loaders):
            return bare_frozen(learn.encoder, learn.width, *loaders(), epochs, lr).head

        jobs = {
            "cached features": cached,
            "frozen encoder every epoch, fastai": every_epoch,
            "frozen encoder every epoch, bare loop": bare,
        }
        x, y = learn.features("test")  # also warms up
        for name, job in jobs.items():
            set_seed(seed)
            heads = []
            took = seconds(lambda job=job, heads=heads: heads.append(job()))
            with torch.no_grad():
                p = heads[0].to(x.device)(x).softmax(1)
            scores = evaluate_predictions(p.cpu(), y.cpu(), data.classes)
            results.setdefault(name, []).append((took, scores))
            if name == "cached features":
                results.setdefault("of which features", []).append((cached_parts[-1], None))
    return report(results, "cached features"), {}


def report(results, base):
    "Seconds, ratios and accuracy of the rivals"
    rows = []
    for name, runs in results.items():
        took = [t for t, _ in runs]
        row = {"way": name, "s": spread(took), "ratio": ratios(took, [t for t, _ in results[base]])}
        for metric in ("unweighted_accuracy", "roc_auc") if runs[0][1] else ():
            values = [scores[metric] for _, scores in runs]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            row[metric] = dict(mean=statistics.mean(values), deviation=deviation)
        rows.append(row)
    return rows


# The whole run


class PilImages(torch.utils.data.Dataset):
    "PIL images and labels of a split, each image transformed when it is asked for"

    def __init__(self, data, split, transform):
        chosen = data.splits[split]
        self.images, self.labels = (
            [Image.fromarray(image[0].numpy()) for image in data.images[chosen]],
            data.labels[chosen].tolist(),
        )
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.labels[i]


class TwoCropTransform:
    "Two views of one image"

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, image):
        return torch.stack([self.transform(image), self.transform(image)])


def usual_recipe(data, settings, seed, args, workers):
    "Both stages as they are usually written: (encoder, head)"
    set_seed(seed)
    mean, std = (s.tolist() for s in data.channel_stats())
    end = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                data.images.shape[-1], scale=(0.5, 1), ratio=(3 / 4, 4 / 3)
            ),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10, transforms.InterpolationMode.BILINEAR),
            transforms.ColorJitter(0.2 * std[0], 0.2),
            *end,
        ]
    )
    make = partial(
        torch.utils.data.DataLoader,
        batch_size=settings.batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    plain = transforms.Compose(end)
    views = make(PilImages(data, "train", TwoCropTransform(augment)), shuffle=True, drop_last=True)
    train, valid = (
        make(PilImages(data, "train", plain), shuffle=True),
        make(PilImages(data, "valid", plain)),
    )
    device = torch.device(default_device())
    model = bare_model(args, data, device)
    optimizer = adamw(model.parameters())
    schedule = one_cycle(optimizer, stage_1_rate(settings), settings.epochs * len(views))
    for _ in range(settings.epochs):
        bare_epoch(
            model,
            optimizer,
            contrastive_loss(args.method, settings),
            on(views, device),
            lambda v: v,
            schedule,
        )
    width = model[1][0].in_features
    return bare_frozen(
        model[0],
        width,
        Moved(train, device),
        Moved(valid, device),
        settings.classifier_epochs,
        settings.classifier_lr,
    )


def on(loader, device):
    "Batches of a loader on the device"
    for x, y in loader:
        yield x.to(device), y.to(device)


class Moved:
    "A loader whose batches are on the device"

    def __init__(self, loader, device):
        self.loader, self.device = loader, device

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return on(self.loader, self.device)


def whole(args):
    "`run_method` and the usual recipe, seed by seed"
    given = {
        name: getattr(args, name) for name in ("epochs", "classifier_epochs") if getattr(args, name)
    }
    given |= dict(encoder=args.encoder, heads=("cross_entropy",))
    settings, results = Settings(**given), {}
    for seed in range(-1, args.rounds):
        data = make_data(args, args.batches, max(seed, 0))
        chosen = replace(settings, batch_size=batch_size_of(settings, len(data.splits["train"])))
        if seed < 0:  # this round warms up
            chosen = replace(chosen, epochs=1, classifier_epochs=1)
        runs = {}
        (run,) = run_method(args.method, max(seed, 0), data, chosen)
        runs["asymcl, both stages"] = run.seconds, run.metrics
        for workers in args.workers:
            start = now()
            model = usual_recipe(data, chosen, max(seed, 0), args, workers)
            took = now() - start
            runs[f"usual recipe, {workers} workers"] = (
                took,
                frozen_validation(model, data.loader("test", BATCH)),
            )
        if seed >= 0:
            for name, result in runs.items():
                results.setdefault(name, []).append(result)
    facts = dict(method=args.method, epochs=settings.epochs)
    return report(results, "asymcl, both stages"), facts | dict(
        classifier_epochs=settings.classifier_epochs
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sections = dict(
        stage1=stage1,
        parts=parts,
        options=options,
        allocator=allocator,
        step=step,
        stage2=stage2,
        whole=whole,
    )
    parser.add_argument("section", choices=sections)
    parser.add_argument("--encoder", choices=["small", "resnet18"], default="small")
    parser.add_argument("--size", type=int, default=28, help="side of the images in pixels")
    parser.add_argument(
        "--batches",
        type=int,
        help="batches of an epoch, where not in options and allocator; default: all of the sample",
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="epochs, steps or seeds of each rival"
    )
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="encoders of all rivals in channels-last memory",
    )
    parser.add_argument(
        "--keep-memory", action="store_true", help="glibc keeps freed memory, for all rivals"
    )
    parser.add_argument("--bf16", action="store_true", help="options: bfloat16 too")
    parser.add_argument("--no-compile", action="store_true", help="options: without torch.compile")
    parser.add_argument("--method", default="AFCL", help="whole: the contrastive loss")
    parser.add_argument(
        "--epochs", type=int, help="whole: of stage 1; default: as the first command has it"
    )
    parser.add_argument(
        "--classifier-epochs",
        type=int,
        help="whole: of stage 2; default: as the first command has it",
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 2],
        help="whole: of the usual recipe's DataLoader",
    )
    add_options(parser)
    args = parser.parse_args()
    if args.toy:
        args.batches, args.rounds, args.workers, args.no_compile = 1, 1, [0], True
        args.epochs = args.classifier_epochs = 1
    if args.section == "whole" and args.channels_last:
        parser.error("whole trains the encoder as the package makes it")
    if args.keep_memory:
        keep_memory()
    rows, facts = sections[args.section](args)
    names = ("section", "encoder", "size", "channels_last", "keep_memory", "rounds")
    common = {name: getattr(args, name) for name in names} | dict(batch=BATCH)
    common |= dict(device=str(default_device()), capability=torch.backends.cpu.get_cpu_capability())
    save(record(rows, **common, **facts), args.out)


if __name__ == "__main__":
    main()
