"""Images at 224 pixels from files: memory of a training, time of batches and views, features per second.

    python benchmarks/large_images.py {memory,speed,features} [--images N] [--threads N] [--out FILE]

memory: peak of anonymous memory (without the pages of mapped files, Linux only) in each phase of a training of ResNet-18, for N images
and for 4 N images, each in a new process. It must not grow with the images.
speed: seconds of a batch of 32 images, in turns within one run: decoding it (once, before the training), loading it, two random views of
each image, and a training step of ResNet-18 on these views.
features: images per second of `cached_features` on the first call, and seconds of the second call, on the clock and of the processor
(which other processes change less): small encoder on 10,000 images at 28 pixels, ResNet-18 on N images at 224 pixels.

The images are synthetic lesions (JPEG, 600x450 pixels).
"""

import argparse
import ctypes
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread

import torch
from decode import draw
from record import add_options, record, save
from torch import nn

from asymcl.data.datasets import ImageData
from asymcl.data.own_images import image_folder
from asymcl.images.files import ImageFile, load_images
from asymcl.losses import AFCL
from asymcl.models import projection_head, resnet_encoder, small_encoder
from asymcl.train.features import cached_features
from asymcl.train.two_stage import TwoStageLearner, fused_adam
from asymcl.views import lesion_views, random_views

BATCH = 32


def open_folder(photos, cache, size):
    "ImageData of a folder of photographs"
    return image_folder(photos, size=size, cache=cache, shares=(0.8, 0.1, 0.1))


# memory


def anonymous():
    "MiB of this process that are not pages of files"
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def return_memory():
    "Make glibc give every large block back at once, so that only what is in use is counted"
    if not ctypes.CDLL(None).mallopt(-3, 2**16):  # M_MMAP_THRESHOLD
        raise OSError("mallopt failed")


def peak(job):
    "Result of a job, and the largest anonymous memory in MiB while it runs"
    seen, done = [anonymous()], Event()

    def watch():
        while not done.wait(0.005):
            seen.append(anonymous())

    thread = Thread(target=watch)
    thread.start()
    try:
        result = job()
    finally:
        done.set()
        thread.join()
    return result, max(seen)


def phases(photos, size, threads):
    "MiB of the images, and peak of anonymous memory in each phase of a training"
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    return_memory()
    cache = photos.parent / "cache"
    peaks = {}

    def phase(name, job):
        result, peaks[name] = peak(job)
        return result

    phase("decode into the cache", lambda: open_folder(photos, cache, size))
    data = phase("open the cache", lambda: open_folder(photos, cache, size))
    phase("fingerprint", data.fingerprint)
    phase("pixel statistics", data.channel_stats)
    encoder = resnet_encoder(18)
    dls = data.dls(BATCH)
    learn = phase(
        "learner",
        lambda: TwoStageLearner(dls, encoder, AFCL(), classifier_loss="cross_entropy"),
    )
    with learn.contrastive.no_bar(), learn.contrastive.no_logging():
        phase("stage 1, one epoch", lambda: learn.fit_contrastive(1))
    head = phase("stage 2, features", learn.new_classifier)
    with head.no_bar(), head.no_logging():
        phase("stage 2, one epoch", lambda: learn.fit_classifier(1))
    stats = data.channel_stats()
    phase("cached_features", lambda: cached_features(data, encoder, stats, photos.parent))
    return data.images.nbytes / 2**20, peaks


def memory(args):
    "Record of peaks for N and 4 N images"
    found = []
    for images in (args.images, 4 * args.images):
        with tempfile.TemporaryDirectory() as scratch:
            photos = draw(Path(scratch), images)
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                found.append(process.submit(phases, photos, args.size, args.threads).result())
    (few_mib, few), (many_mib, many) = found
    rows = [dict(phase="(the images)", N=few_mib, four_N=many_mib, growth=many_mib - few_mib)]
    for name in few:
        rows.append(dict(phase=name, N=few[name], four_N=many[name], growth=many[name] - few[name]))
    return record(rows, unit="MiB of anonymous memory", images=args.images, batch=BATCH)


# speed


def training_step(views, labels):
    "A job that takes one step of stage 1 on views (n, views, channels, height, width)"
    model = nn.Sequential(resnet_encoder(18), projection_head(512))
    optimizer = fused_adam(list(model.parameters()))
    loss = AFCL()

    def step():
        embeddings = model(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        loss(embeddings, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def decoded(files, size):
    "Seconds to decode a batch of files into an empty cache with two worker processes"
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        load_images(files, size, cache=cache, workers=2)
        return (time.perf_counter() - start) * BATCH / len(files)


def seconds(job):
    "Seconds of a job"
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def speed(args):
    "Record of the seconds of a batch"
    with tempfile.TemporaryDirectory() as scratch:
        photos = draw(Path(scratch), args.images)
        files = [ImageFile(str(path)) for path in sorted(photos.rglob("*.jpg"))]
        data = open_folder(photos, Path(scratch) / "cache", args.size)
        loader = data.loader("train", BATCH, shuffle=True, drop_last=True)
        images, labels = loader.one_batch()
        order = torch.randperm(len(loader.dataset))
        step = training_step(random_views(images), labels)
        jobs = {
            "decode, once": lambda: decoded(files, args.size),
            "load": lambda: seconds(lambda: loader.select(order[torch.randperm(BATCH)])),
            "two random views": lambda: seconds(lambda: random_views(images)),
            "two lesion views": lambda: seconds(lambda: lesion_views(images)),
            "training step of ResNet-18": lambda: seconds(step),
        }
        times = {name: [] for name in jobs}
        for n in range(args.rounds + 1):  # the first round warms up
            for name, job in jobs.items():
                measured = job()
                if n:
                    times[name].append(measured)
    base = statistics.median(times["training step of ResNet-18"])
    rows = []
    for name, values in times.items():
        median = statistics.median(values)
        spread = dict(least=min(values), median=median, most=max(values))
        rows.append({"seconds of a batch": name, **spread, "share of the step": median / base})
    return record(rows, batch=BATCH, pixels=args.size, images=args.images, rounds=args.rounds)


# features


def timed_features(data, encoder, pixels):
    "Row of the record: first and second call of `cached_features`, in seconds"
    calls = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            start, processor = time.perf_counter(), time.process_time()
            cached_features(data, encoder, data.channel_stats(), cache)
            calls.append((time.perf_counter() - start, time.process_time() - processor))
    (first, first_processor), (second, second_processor) = calls
    n = len(data.images)
    return {
        "encoder": encoder.made_by["maker"],
        "pixels": pixels,
        "first call": dict(seconds=first, processor=first_processor),
        "second call": dict(seconds=second, processor=second_processor),
        "images": dict(all=n, per_second=n / first, per_processor_second=n / first_processor),
    }


def features(args):
    "Record of features per second"
    n = 200 if args.toy else 10_000
    images = torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8)
    splits = dict(train=torch.arange(n))
    small = ImageData(images, torch.arange(n) % 2, ("a", "b"), splits, "noise", "memory", 0)
    small.channel_stats()
    rows = [timed_features(small, small_encoder(), 28)]
    with tempfile.TemporaryDirectory() as scratch:
        photos = draw(Path(scratch), args.images)
        data = open_folder(photos, Path(scratch) / "cache", args.size)
        data.channel_stats()
        rows.append(timed_features(data, resnet_encoder(18), args.size))
    return record(rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sections = dict(memory=memory, speed=speed, features=features)
    parser.add_argument("section", choices=sections)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="speed: measurements of each")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    add_options(parser)
    args = parser.parse_args()
    if args.toy:
        args.images, args.size, args.rounds = 60, 32, 1
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*batch_size is.*")
    save(sections[args.section](args), args.out)


if __name__ == "__main__":
    main()
