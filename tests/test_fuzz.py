"""Hostile and unlucky input: a result, or an error that names what is wrong; never a hang, another exception or a silent NaN.

By default a small, reproducible run. ASYMCL_FUZZ=600 draws that many inputs for each test, at random and more than 10,000 in all;
ASYMCL_FUZZ_COUNTS=counts.json adds to the counts in that file how many inputs each test has seen."""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import math
import os
import resource
import signal
import tempfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from asymcl import metrics, statistics
from asymcl.cli import compare as cli
from asymcl.cli import predict
from asymcl.compare import experiment, tune
from asymcl.compare.report import read_records
from asymcl.core.files import load_state, save_state
from asymcl.core.settings import Settings
from asymcl.data import imbalance
from asymcl.data.datasets import fashion_mnist, read_idx
from asymcl.data.own_images import (
    from_arrays,
    from_csv,
    from_dataframe,
    from_npz,
    image_folder,
    read_table,
)
from asymcl.decisions import threshold_for_recall
from asymcl.fused import fused_losses, reduce_losses
from asymcl.images.files import ImageFile, decode, load_images, read_file, zip_members
from asymcl.infer.model import (
    Gallery,
    TrainedModel,
    fit_temperature,
    load_model,
)
from asymcl.losses import (
    ACL,
    AFCL,
    CL,
    FCL,
    _all_weights,
    _anchor_losses,
    asymmetric_focal_contrastive_loss,
    unit_rows,
)

pytestmark = pytest.mark.fuzz
EXAMPLES, COUNTS = int(os.environ.get("ASYMCL_FUZZ", 0)), Counter()
PHASES = [Phase.generate, Phase.shrink]  # without explaining, which takes long
SECONDS, BYTES = 20, 6 * 2**30  # that one input may take


class Hang(BaseException):
    "An input took too long; no handler of exceptions in between keeps it"


@contextlib.contextmanager
def guarded():
    "Limits the time of an input"

    def stop(number, frame):
        raise Hang

    usual = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    except Hang:
        raise AssertionError(f"still running after {SECONDS} seconds") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    "An input that asks for more than some gigabytes fails, and does not take the machine with it"
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if Path("/proc/self/statm").exists()
        else 2**40
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="session", autouse=True)
def counts():
    "Adds the number of inputs of each test to the file that ASYMCL_FUZZ_COUNTS names"
    yield COUNTS
    if not (name := os.environ.get("ASYMCL_FUZZ_COUNTS")):
        return
    path = Path(name)
    with FileLock(path.with_suffix(".lock")):
        known = Counter(json.loads(path.read_text()) if path.exists() else {})
        path.write_text(json.dumps(known + COUNTS, indent=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder in which the tests of this file work"
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("fuzz")
        patch.chdir(path)
        patch.setenv("XDG_CACHE_HOME", str(path / "cache"))
        yield path


def fuzz(few, **strategies):
    "Decorator: the test sees `few` inputs, or as many as ASYMCL_FUZZ sets, each within its time, each counted"

    def decorate(test):
        @settings(
            max_examples=EXAMPLES or few,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            print_blob=False,
            phases=PHASES,
            suppress_health_check=[
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.filter_too_much,
            ],
        )
        @given(**strategies)
        @functools.wraps(test)
        def run(**kwargs):
            COUNTS[test.__name__] += 1
            with guarded(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                test(**kwargs)

        return run

    return decorate


REJECTED = object()


def attempt(names, call, *args, **kwargs):
    "What a call gives, or REJECTED where it raises a documented error that holds one of `names`"
    try:
        return call(*args, **kwargs)
    except TypeError:
        return REJECTED  # in Python's words, for what is of another kind altogether
    except OverflowError as error:
        assert "too large" in str(error) or "too big" in str(error), error  # for hundreds of digits
        return REJECTED
    except (ValueError, OSError) as error:
        if "inhomogeneous" in str(error) or "expected sequence" in str(error):
            return REJECTED  # NumPy and PyTorch on ragged lists
        assert any(str(name) in str(error) for name in names), (
            f"{type(error).__name__} names none of {names}: {error}"
        )
        return REJECTED


def mostly(usual, odd):
    return st.integers(0, 7).flatmap(lambda i: odd if i == 7 else usual)


ODD_NUMBERS = st.sampled_from(
    [
        -1,
        0,
        -0.0,
        1,
        2.5,
        1e-45,
        1e-30,
        1e300,
        1e39,
        -1e300,
        math.nan,
        math.inf,
        -math.inf,
        2**63,
        2**70,
        10**400,
        True,
        None,
        "1",
        "",
        np.float32(0.5),
        np.int64(2),
        1j,
        [1],
        b"1",
    ]
)


def damaged(data):
    "Strategy: the bytes `data` after some accidents, or none"
    place, few = st.integers(0, max(0, len(data) - 1)), st.binary(max_size=6)
    early = st.integers(0, min(len(data), 64))
    accident = st.one_of(
        st.tuples(st.just("write"), place, few),
        st.tuples(st.just("write"), early, few),
        st.tuples(st.just("insert"), place, few),
        st.tuples(st.just("cut"), place, st.integers(1, 40)),
        st.tuples(st.just("end"), place, st.none()),
        st.tuples(st.just("twice"), place, st.none()),
    )
    return st.lists(accident, max_size=4).map(
        lambda accidents: functools.reduce(suffer, accidents, data)
    )


def suffer(data, accident):
    "`data` after one accident"
    kind, at, what = accident
    if kind == "write":
        return data[:at] + what + data[at + len(what) :]
    if kind == "insert":
        return data[:at] + what + data[at:]
    if kind == "cut":
        return data[:at] + data[at + what :]
    return data[:at] if kind == "end" else data + data[at:]


# Losses

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LOSS_NAMES = [
    "embeddings",
    "labels",
    "reference",
    "pair_mask",
    "gamma",
    "eta",
    "temperature",
    "averaging",
    "reduction",
    "backend",
]
loss_settings = st.fixed_dictionaries(
    {},
    optional=dict(
        gamma=mostly(st.floats(0, 20), ODD_NUMBERS),
        eta=mostly(st.floats(0, 1000), ODD_NUMBERS),
        temperature=mostly(st.floats(1e-4, 10), ODD_NUMBERS),
        averaging=mostly(st.sampled_from(["pairs", "batch"]), st.sampled_from(["", None, 1])),
        normalize=st.booleans(),
        reduction=mostly(
            st.sampled_from(["mean", "sum", "none"]), st.sampled_from(["max", None, 0])
        ),
        backend=mostly(
            st.sampled_from(["plain", "fused", "auto"]), st.sampled_from(["cuda", None])
        ),
    ),
)


@st.composite
def values(draw, shape, dtype):
    "A tensor of noise of some size, all rows alike or not, with or without something that is no number"
    x = torch.randn(
        shape,
        generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))),
        dtype=torch.float64,
    )
    x = x * draw(st.sampled_from([1, 1, 1, 0, 1e-320, 1e-42, 1e-20, 1e-4, 100, 1e15, 1e30, 1e300]))
    if x.numel() and draw(st.booleans()):
        x = x[:1].expand(shape).clone()
    x = x.to(dtype)
    x[x.isinf()] = torch.finfo(dtype).max
    if x.numel() and draw(st.integers(0, 9)) == 9:
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(
            st.sampled_from([torch.nan, torch.inf])
        )
    return x


@st.composite
def labels_of(draw, n):
    "Labels for n images, most of them of the right kind"
    n = draw(mostly(st.just(n), st.integers(0, 8)))
    kind = draw(
        st.sampled_from(
            ["few", "few", "one", "all", "huge", "narrow", "bool", "soft", "float", "rows", "none"]
        )
    )
    few = torch.tensor(
        draw(st.lists(st.integers(-2, 2), min_size=n, max_size=n)), dtype=torch.int64
    )
    if kind == "narrow":
        return (few + 2).to(
            draw(st.sampled_from([torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16]))
        )
    if kind == "soft":
        return torch.nn.functional.one_hot(few + 2, 5).to(draw(st.sampled_from(DTYPES))) * draw(
            st.sampled_from([1, 1, 0.5])
        )
    return {
        "few": few,
        "one": few * 0,
        "all": torch.arange(n),
        "huge": few * 2**61,
        "bool": few > 0,
        "float": few.float(),
        "rows": few[:, None],
        "none": None,
    }[kind]


@st.composite
def batches(draw):
    "Arguments of a loss: embeddings, and labels or a mask, with or without a reference set"
    dtype, n, width = (
        draw(st.sampled_from(DTYPES)),
        draw(st.integers(0, 7)),
        draw(st.integers(0, 4)),
    )
    shape = (n, *draw(st.sampled_from([(), (), (1,), (2,), (0,), (1, 1)])), width)
    args, r = dict(embeddings=draw(values(shape, dtype))), draw(st.sampled_from([0, 0, 1, 3]))
    if r:
        args["reference"] = draw(
            values(
                (r, draw(mostly(st.just(width), st.integers(0, 4)))),
                draw(mostly(st.just(dtype), st.sampled_from(DTYPES))),
            )
        )
    if draw(st.integers(0, 3)) < 3:
        args["labels"] = draw(labels_of(n))
        if r:
            args["reference_labels"] = draw(labels_of(r))
    else:
        mask = torch.rand(draw(mostly(st.just((n, n + r)), st.just((n, n)))))
        args["pair_mask"] = draw(
            st.sampled_from(
                [
                    mask,
                    mask < 0.5,
                    mask < 0,
                    mask < 2,
                    (mask * 9).long(),
                    mask * 3,
                    mask * torch.nan,
                ]
            )
        )
    return args


def gradients(loss, inputs):
    "Gradients of the sum of `loss`, zeros where it does not depend on an input"
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(loss.sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def steepness(x, others, eta=0, gamma=0, temperature=0.07, normalize=True, **_):
    "A bound of the gradient of the losses' sum, for rows `x`"
    largest = x.detach().double().abs().amax(-1)
    reach = (
        1 / largest[largest > 0].min()
        if normalize and largest.any()
        else max(1.0, max(o.detach().double().abs().max() for o in others))
    )
    return 1e3 * (1 + eta) * (1 + gamma) / temperature * float(reach)


def check_loss(call, args, kwargs):
    "A loss raises an error, or is finite with a gradient that is finite unless its true value is too large for the type"
    tensors = [args[name].requires_grad_() for name in ("embeddings", "reference") if name in args]
    finite = all(x.isfinite().all() for x in tensors)
    loss = attempt(LOSS_NAMES, call, **args)
    if loss is REJECTED:
        return
    assert finite, "values that are no numbers went through"
    assert loss.isfinite().all() and (loss >= 0).all(), loss
    shape = args["embeddings"].shape[:-1] if kwargs.get("reduction") == "none" else ()
    assert loss.shape == shape
    for x, grad in zip(tensors, gradients(loss, tensors), strict=True):
        assert not grad.isnan().any(), grad
        if steepness(x, tensors, **kwargs) < torch.finfo(x.dtype).max:
            assert grad.isfinite().all(), grad


@fuzz(250, args=batches(), kwargs=loss_settings)
def test_loss(args, kwargs):
    check_loss(functools.partial(asymmetric_focal_contrastive_loss, **kwargs), args, kwargs)


@fuzz(80, args=batches(), kwargs=loss_settings, kind=st.sampled_from([CL, FCL, ACL, AFCL]))
def test_loss_module(args, kwargs, kind):
    fixed = {CL: ("gamma", "eta"), FCL: ("eta",), ACL: ("gamma",), AFCL: ()}[kind]
    kwargs = {name: value for name, value in kwargs.items() if name not in fixed}
    module = attempt(LOSS_NAMES, kind, **kwargs)
    if module is not REJECTED:
        check_loss(module, args, module.settings)


@fuzz(80, args=batches(), kwargs=loss_settings)
def test_loss_without_a_look_at_the_values(args, kwargs):
    attempt(
        LOSS_NAMES, asymmetric_focal_contrastive_loss, **args, **kwargs, check_values=False
    )  # NaN may come of NaN


@fuzz(
    80,
    x=st.integers(1, 9).flatmap(lambda n: values((n, 3), torch.float64)),
    classes=st.lists(st.integers(-2, 2), min_size=9, max_size=9),
    anchors=st.integers(1, 9),
    rows=st.integers(1, 9),
    mask=st.booleans(),
    temperature=st.floats(1e-3, 10),
    gamma=st.floats(0, 50),
    eta=st.floats(0, 1e6),
    averaging=st.sampled_from(["pairs", "batch"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_fused_losses_are_the_plain_ones(x, classes, anchors, rows, mask, reduction, **kwargs):
    x, anchors = unit_rows(x.nan_to_num(0, 0, 0)).requires_grad_(), min(anchors, len(x))
    pairs = torch.tensor(classes[: len(x)])
    weights = (pairs[:, None] == pairs).double()

    def plain(x, temperature):
        return _anchor_losses(x, _all_weights(pairs, anchors, x.dtype), **kwargs)

    share = dict(mean=x.new_full((anchors,), 1 / anchors), sum=x.new_ones(anchors), none=None)
    expected = reduce_losses(plain(x, None), share[reduction])
    found = fused_losses(
        x,
        (lambda i: weights[i]) if mask else pairs,
        anchors,
        plain,
        share=share[reduction],
        block_rows=rows,
        **kwargs,
    )
    scale = (1 + kwargs["eta"]) / kwargs["temperature"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * scale)
    for a, b in zip(gradients(found, [x]), gradients(expected, [x]), strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8 * scale * len(x))


# Files


def idx(*shape):
    "An IDX file of that shape"
    head = b"\0\0\x08" + bytes([len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    return head + bytes(i % 3 for i in range(math.prod(shape)))


@fuzz(
    150,
    data=st.one_of(
        damaged(idx(7)),
        damaged(idx(2, 3, 4)),
        damaged(gzip.compress(idx(50), mtime=0)),
        st.binary(max_size=40),
    ),
)
def test_read_idx(folder, data):
    path = folder / ("some-idx.gz" if data[:1] == b"\x1f" else "some-idx")
    path.write_bytes(data)
    found = attempt([path], read_idx, path)
    if found is not REJECTED:
        assert found.dtype == torch.uint8 and found.numel() and found.sum() >= 0


@fuzz(
    40,
    which=st.integers(0, 3),
    data=st.sampled_from([idx(30, 28, 28), idx(30)]).flatmap(damaged),
    args=st.fixed_dictionaries(
        {},
        optional=dict(
            classes=st.sampled_from(
                [
                    (0, 1),
                    (1, 0, 2),
                    "all",
                    "Shirt",
                    [0],
                    (0, 0),
                    (0, 99),
                    (1.5, 0),
                    None,
                    3,
                    (),
                    [True, 0],
                    ("Shirt", []),
                ]
            ),
            proportions=st.lists(mostly(st.floats(0.01, 1), ODD_NUMBERS), max_size=3),
            long_tail_ratio=ODD_NUMBERS,
            valid_per_class=ODD_NUMBERS,
            train_total=ODD_NUMBERS,
            seed=ODD_NUMBERS,
        ),
    ),
)
def test_fashion_mnist(folder, which, data, args):
    files = [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ]
    for i, name in enumerate(files):
        (folder / name).write_bytes(data if i == which else idx(*[(30, 28, 28), (30,)][i % 2]))
    found = attempt(
        [*files, "class", "labels", *args, "image", "proportion", "Fashion"],
        fashion_mnist,
        **dict(classes=(0, 1), source=folder) | args,
    )
    if found is not REJECTED:
        assert found.counts("train").min() > 0 and len(repr(found)) > 20


def image_bytes(kind, mode, **options):
    "A small image of that format and mode"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("RGB") if mode != "RGBA" else Image.fromarray(pixels)
    image = (
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned
IMAGES = [image_bytes("PNG", m) for m in ("RGB", "L", "RGBA", "P", "1", "I;16", "LA")] + [
    image_bytes("JPEG", "RGB"),
    image_bytes("JPEG", "CMYK"),
    image_bytes("JPEG", "RGB", progressive=True, exif=EXIF),
    image_bytes("BMP", "RGB"),
    image_bytes("GIF", "P"),
    image_bytes("WEBP", "RGBA"),
    image_bytes("PPM", "RGB"),
    image_bytes("TIFF", "RGB"),
    image_bytes("TIFF", "F"),
    image_bytes("TIFF", "RGB", compression="tiff_lzw"),
    image_bytes("TIFF", "I;16"),
    image_bytes("JPEG2000", "RGB"),
]
images = st.sampled_from(IMAGES).flatmap(damaged)
decoding = dict(
    size=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["squish", "crop", "pad"]),
)
odd_decoding = st.fixed_dictionaries(
    {},
    optional=dict(
        size=ODD_NUMBERS,
        channels=ODD_NUMBERS,
        fit=st.sampled_from(["", None, "zoom", []]),
    ),
)


@fuzz(250, data=images, **decoding)
def test_decode(data, size, channels, fit):
    try:
        pixels, mode = decode(data, size, channels=channels, fit=fit)
    except ValueError as error:
        assert str(error)
    else:
        assert (
            pixels.shape == (channels, size, size)
            and pixels.dtype == np.uint8
            and isinstance(mode, str)
        )


@fuzz(40, options=odd_decoding, cache_limit=mostly(st.just(10**9), ODD_NUMBERS))
def test_decoding_options(folder, options, cache_limit):
    attempt([*options, "pixels"], decode, IMAGES[0], **options)
    (folder / "one.png").write_bytes(IMAGES[0])
    found = attempt(
        [*options, "cache_limit"],
        load_images,
        [ImageFile("one.png")],
        **options,
        cache_limit=cache_limit,
        workers=0,
    )
    if found is not REJECTED:
        assert len(found.images) + len(found.problems) == 1


@fuzz(
    60,
    contents=st.lists(images, max_size=3),
    cache=st.booleans(),
    accident=st.sampled_from(["none", "cut", "hit"]),
    at=st.integers(1, 400),
    **decoding,
)
def test_load_images_and_its_cache(folder, contents, cache, accident, at, **options):
    for i, data in enumerate(contents):
        (folder / f"{i}.img").write_bytes(data)
    files = [ImageFile(f"{i}.img") for i in range(len(contents))]
    first = load_images(files, **options, cache=folder / "decoded" if cache else False, workers=0)
    images, modes = first.images.clone(), list(first.modes)
    assert images.shape == (
        len(files) - len(first.problems),
        options["channels"],
        options["size"],
        options["size"],
    )
    assert all(mode is None or i not in first.problems for i, mode in enumerate(modes))
    if not cache:
        return
    del first
    for path in (*(folder / "decoded").glob("*.npy"), *(folder / "decoded").glob("*.json")):
        data = path.read_bytes()
        path.unlink()  # what is mapped must not be written to
        if accident == "cut":
            data = data[:-at]
        if accident == "hit":
            data = data[:-at] + b"x" + data[-at:][1:]
        path.write_bytes(data)
    again = load_images(files, **options, cache=folder / "decoded", workers=0)
    assert again.images.shape == images.shape and (
        accident == "hit" or torch.equal(again.images, images) and again.modes == modes
    )
    for path in (folder / "decoded").glob("*"):
        path.unlink()


def zipped(kind, *files):
    "A zip archive of pairs of name and content"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return out.getvalue()


ARCHIVES = [
    zipped(kind, ("a/one.png", IMAGES[0]), ("a/.hidden", b""), ("b/é.txt", b"text" * 30))
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
]


@fuzz(80, data=st.sampled_from(ARCHIVES).flatmap(damaged))
def test_zip_members(folder, data):
    path = folder / "images.zip"
    path.write_bytes(data)
    members = attempt([path], zip_members, path)
    for file in () if members is REJECTED else members.values():
        attempt(["cannot be read", "is empty", "is larger"], read_file, file)


def npz(**arrays):
    "An .npz"
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def parts(n):
    return {
        f"{s}_images": np.arange(n * 9, dtype=np.uint8).reshape(n, 3, 3)
        for s in ("train", "val", "test")
    } | {f"{s}_labels": np.arange(n)[:, None] % 2 for s in ("train", "val", "test")}


@fuzz(
    80,
    data=st.one_of(
        damaged(npz(**parts(6))),
        damaged(npz(train_images=np.array([None, 1]), train_labels=np.zeros(2))),
    ),
)
def test_from_npz(folder, data):
    path = folder / "arrays.npz"
    path.write_bytes(data)
    found = attempt([path, "images", "labels", "class"], from_npz, path)
    if found is not REJECTED:
        assert found.counts("train").min() > 0


ODD_ARRAYS = st.sampled_from(
    [
        np.zeros((6, 2, 2), np.uint8),
        np.zeros((6, 2, 2)),
        np.full((6, 2, 2), np.nan),
        np.full((6, 2, 2), 2.0),
        np.zeros((6, 0, 2)),
        np.zeros((0, 2, 2), np.uint8),
        np.zeros((6, 2, 2), np.int64),
        np.zeros((6, 2, 2), bool),
        np.zeros((6, 2, 2), complex),
        np.zeros((6, 2, 2), object),
        np.zeros((6, 2, 2), "U1"),
        np.zeros((6, 2, 2, 3), np.uint8),
        np.zeros((6, 5, 2, 2), np.uint8),
        torch.zeros(6, 2, 2).half(),
        torch.rand(6, 3, 2, 2).bfloat16(),
        [[[1]]],
        [[[1], [1, 2]]],
        None,
        "text",
        5,
    ]
)
cells = st.one_of(
    st.integers(-1, 3),
    st.sampled_from(
        [
            0,
            1,
            2**31,
            2**40,
            2**63,
            2**70,
            0.5,
            1.0,
            math.nan,
            math.inf,
            None,
            pd.NA,
            pd.NaT,
            True,
            "a",
            "",
            " a ",
            "1.0",
            "1e400",
            "nan",
            "é",
            b"a",
            (1, 2),
            (1,),
            [],
            ["a"],
            ("a", "b"),
            {1},
            1j,
        ]
    ),
)


@fuzz(
    120,
    images=mostly(st.just(np.arange(144, dtype=np.uint8).reshape(12, 3, 4)), ODD_ARRAYS),
    labels=st.one_of(
        st.lists(st.integers(0, 2), min_size=12, max_size=12),
        st.lists(cells, min_size=12, max_size=12),
        ODD_ARRAYS,
    ),
    form=st.sampled_from([list, np.array, torch.tensor, tuple, pd.Series]),
    args=st.fixed_dictionaries(
        {},
        optional=dict(
            groups=st.lists(cells, min_size=12, max_size=12),
            classes=st.sampled_from(["ab", ["a", "b"], ["a", "b", "c"], ["a", "a"], [], [1, 2], 5]),
            splits=st.lists(
                st.sampled_from(["train", "Val", "test", "TRAIN ", "x", None, 1]),
                min_size=11,
                max_size=12,
            ),
            shares=st.lists(mostly(st.floats(0.1, 1), ODD_NUMBERS), min_size=2, max_size=3),
            seed=ODD_NUMBERS,
        ),
    ),
)
def test_from_arrays(images, labels, form, args):
    with contextlib.suppress(ValueError, TypeError, RuntimeError, OverflowError):
        labels = form(labels)
    found = attempt(["image", "label", "class", *args], from_arrays, images, labels, **args)
    if found is REJECTED:
        return
    assert (
        sum(map(len, found.splits.values())) == len(found.images)
        and found.counts("train").min() > 0
    )
    assert len(found.classes) == int(found.labels.max()) + 1 and isinstance(repr(found), str)


@pytest.fixture(scope="module")
def photos(folder):
    "A folder with odd names, among them links: some good, one to nowhere, one in a circle, one that leads out"
    random = np.random.default_rng(0)
    for name in ("tabby cat", "ñandú 🦤"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(
                folder / "photos" / name / f"p {i} é.png"
            )
    (folder / "photos" / "tabby cat" / "link.png").symlink_to("../ñandú 🦤/p 0 é.png")
    (folder / "photos" / "nowhere.png").symlink_to("not there")
    (folder / "photos" / "circle.png").symlink_to("circle.png")
    (folder / "photos" / "out.png").symlink_to("/etc/passwd")
    return folder / "photos"


PATHS = [f"{name}/p {i} é.png" for name in ("tabby cat", "ñandú 🦤") for i in range(4)]
paths = mostly(
    st.sampled_from(PATHS),
    st.one_of(
        cells,
        st.text(max_size=5),
        st.sampled_from(
            [
                "../x",
                "/etc/passwd",
                "circle.png",
                "nowhere.png",
                "out.png",
                "tabby cat/link.png",
                "tabby cat",
                ".",
                "a\0b",
                "x" * 5000,
                "\ud800",
                Path("p"),
            ]
        ),
    ),
)
columns = st.sampled_from(["path", "label", "who", "part", "", None, 0, ("a", "b"), []])
TABLE_NAMES = [
    "column",
    "row",
    "class",
    "problem",
    "path_column",
    "label_column",
    "group_column",
    "split_column",
    "on_error",
    "shares",
    "seed",
    "CSV",
    "csv",
    "UTF-8",
    "split",
    "fields",
    "size",
    "channels",
    "fit",
    "table",
    "root",
    "data.csv",
]
table_options = st.fixed_dictionaries(
    dict(size=st.just(2), cache=st.just(False), workers=st.just(0)),
    optional=dict(
        path_column=mostly(st.just("path"), columns),
        label_column=mostly(st.just("label"), columns),
        group_column=mostly(st.just("who"), columns),
        split_column=mostly(st.just("part"), columns),
        classes=st.sampled_from([["a", "b"], ["0", "1"], "ab", [], [0, 1], [None], 5]),
        on_error=st.sampled_from(["skip", "raise", ""]),
        shares=st.sampled_from(
            [(1, 1, 1), (0.7, 0.15, 0.15), (0, 1, 1), (1, 2), None, "abc", (math.nan,) * 3]
        ),
        seed=ODD_NUMBERS,
    ),
)


@st.composite
def tables(draw, cell):
    "Columns of a table of images"
    usual = [(p, i // 4, f"g{i}", None) for i, p in enumerate(PATHS)] * draw(st.integers(0, 1))
    odd = draw(
        st.lists(
            st.tuples(
                paths, cell, cell, st.one_of(cell, st.sampled_from(["train", "test", "valid"]))
            ),
            max_size=5,
        )
    )
    return pd.DataFrame(
        usual + odd,
        columns=draw(
            mostly(
                st.just(["path", "label", "who", "part"]),
                st.lists(columns.filter(lambda c: c != []), min_size=4, max_size=4),
            )
        ),
        index=draw(st.permutations(range(len(usual + odd)))),
        dtype=object,
    )


@fuzz(120, table=tables(cells), options=table_options)
def test_from_dataframe(photos, table, options):
    found = attempt(TABLE_NAMES, from_dataframe, table, root=photos, **options)
    if found is not REJECTED:
        assert found.counts("train").min() > 0 and len(found.files) == len(found.images)


CSV = "path,label,who,part\n" + "".join(f'{p},{i // 4},"g ""{i}""",\n' for i, p in enumerate(PATHS))


@fuzz(
    100,
    data=st.one_of(
        damaged(CSV.encode()),
        tables(st.text(max_size=4)).map(
            lambda t: t.to_csv(index=False).encode("utf-8", "surrogatepass")
        ),
    ),
    options=table_options,
)
def test_from_csv(photos, data, options):
    path = photos / "data.csv"
    path.write_bytes(data)
    table = attempt([path], read_table, data, path)
    if table is not REJECTED:
        assert all(
            value is None or isinstance(value, str) or value != value
            for value in table.to_numpy().flat
        )
    found = attempt(TABLE_NAMES, from_csv, path, **options)
    if found is not REJECTED:
        assert found.counts("train").min() > 0


@fuzz(
    60,
    names=st.lists(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=6),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    where=st.sampled_from([".", "train", "train"]),
    link=st.sampled_from([None, "file", "folder", "out", "circle"]),
    options=st.fixed_dictionaries(
        {},
        optional=dict(
            classes=st.sampled_from([["a"], [], "ab", [None], 5]),
            group_pattern=st.sampled_from(["(.)\\.png", "(", ".", "(x)?", b"(x)", 5]),
            on_error=st.just("skip"),
            seed=ODD_NUMBERS,
        ),
    ),
)
def test_image_folder(folder, names, where, link, options):
    root = folder / "tree" / str(sum(1 for _ in folder.glob("tree/*")))
    for i, name in enumerate(names):
        if name in (".", ".."):
            continue
        sub = root / where / name
        sub.mkdir(parents=True, exist_ok=True)
        for j in range(3):
            (sub / f"{i}{j} {name}.png").write_bytes(
                image_bytes("PNG", "L").replace(b"IEND", b"IEND") + bytes([i, j])
            )
        if link:
            (sub / "a link").symlink_to(
                {"file": f"{i}0 {name}.png", "folder": ".", "out": "/etc", "circle": "a link"}[link]
            )
    if not root.exists():
        root.mkdir(parents=True)
    found = attempt(
        [*TABLE_NAMES, "classes", "group_pattern", root],
        image_folder,
        root,
        size=2,
        cache=False,
        workers=0,
        **options,
    )
    if found is not REJECTED:
        assert found.counts("train").min() > 0


RECORD = dict(
    settings=dict(
        methods=["AFCL"],
        proportions=[0.9, 0.1],
        heads=["cross_entropy"],
        eta=1.0,
        gamma=2.0,
        averaging="pairs",
        temperature=0.1,
        encoder="small",
        optimizer="adam",
        lr=0.1,
        sampler_alpha=None,
        epochs=1,
        train_total=None,
    ),
    counts=dict(train=[9, 1]),
    runs=[
        dict(
            method="AFCL",
            seed=0,
            metrics=dict(roc_auc=0.5),
            valid_metrics=dict(roc_auc=None),
            confusion=[[1, 0], [0, 1]],
            train_loss=[1.0],
            valid_score=[0.5],
            seconds=1.0,
            varied={},
        )
    ],
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.floats(), st.text(max_size=3)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["runs", "settings", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def records(draw):
    "A record of which a part has been put out of shape"
    content = where = json.loads(json.dumps(RECORD))
    while isinstance(where, dict | list) and where:
        key = draw(
            st.sampled_from(list(where) if isinstance(where, dict) else list(range(len(where))))
        )
        if draw(st.booleans()) or not isinstance(where[key], dict | list) or not where[key]:
            where[key] = draw(json_values)
            break
        where = where[key]
    return json.dumps(draw(mostly(st.just(content), json_values))).encode()


@fuzz(120, data=st.one_of(damaged(json.dumps(RECORD).encode()), records(), st.just(b"[" * 100_000)))
def test_read_records(folder, data):
    (folder / "kept").mkdir(exist_ok=True)
    (folder / "kept" / "one.json").write_bytes(data)
    found = attempt(["kept"], read_records, folder / "kept")
    if found is not REJECTED:
        assert len(found) and "rare" in found


@fuzz(
    120,
    data=st.one_of(
        damaged(json.dumps(cli._described(Settings(), {})).encode()),
        st.just(b"[" * 100_000),
    ),
)
def test_file_of_a_comparison(folder, data):
    (folder / "compared").mkdir(exist_ok=True)
    (folder / "compared" / "comparison.json").write_bytes(data)
    attempt(["compar"], cli._check_comparison, folder / "compared", Settings(), {})


# Numbers

label_lists = st.one_of(
    st.lists(st.integers(0, 3), max_size=12),
    st.lists(st.integers(-1, 2), max_size=3),
    st.sampled_from(
        [
            [0, 2**20],
            [0, 2**40],
            [2**63],
            [2**70],
            [0.5],
            [True, False],
            ["a"],
            [[0, 1], [1, 0]],
            [None],
            3,
            None,
            "01",
            [0, math.nan],
            [1j],
            [[0], [0, 1]],
        ]
    ),
)


@st.composite
def labels(draw):
    "Labels as a list, an array or a tensor of some type"
    found, form = (
        draw(label_lists),
        draw(
            st.sampled_from(
                [
                    "list",
                    "uint8",
                    "int8",
                    "int32",
                    "uint16",
                    "uint64",
                    "float32",
                    "bool",
                    "tensor",
                    "object",
                ]
            )
        ),
    )
    if form == "list":
        return found
    with contextlib.suppress(Exception):
        return torch.tensor(found) if form == "tensor" else np.array(found).astype(form)
    return found


NUMBER_NAMES = [
    "labels",
    "class",
    "counts",
    "available",
    "proportion",
    "total",
    "largest",
    "ratio",
    "groups",
    "group",
    "shares",
    "batch_size",
    "alpha",
    "at_least",
    "count",
    "one group",
    "NaN to integer",
    "could not convert",
]
number_lists = st.lists(mostly(st.integers(0, 50), ODD_NUMBERS), max_size=4)


@fuzz(
    150,
    y=labels(),
    numbers=number_lists,
    others=number_lists,
    x=mostly(st.integers(0, 60), ODD_NUMBERS),
    seed=st.integers(0, 99),
)
def test_counting_and_drawing(y, numbers, others, x, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = attempt(NUMBER_NAMES, imbalance.class_counts, y)
    if counts is not REJECTED:
        assert counts.sum() == len(y)
    attempt(NUMBER_NAMES, imbalance.class_counts, y, 4)
    found = attempt(NUMBER_NAMES, imbalance.proportional_counts, numbers, others, x)
    assert found is REJECTED or sum(found) == (sum(found) if x is None else x) and min(found) > 0
    if isinstance(x, str | bytes | list):
        return
    found = attempt(NUMBER_NAMES, imbalance.long_tail_counts, 50, 4, x)
    assert found is REJECTED or found == sorted(found, reverse=True) and found[-1] > 0
    found = attempt(NUMBER_NAMES, imbalance.draw_indices, y, numbers, generator)
    assert found is REJECTED or len(found) == sum(int(n) for n in numbers)
    found = attempt(NUMBER_NAMES, imbalance.split_groups, y, y, others, generator)
    assert found is REJECTED or sum(map(len, found)) == len(y)


@fuzz(
    80,
    y=labels(),
    batch_size=mostly(st.integers(1, 12), ODD_NUMBERS),
    alpha=mostly(st.floats(0, 1), ODD_NUMBERS),
    at_least=mostly(st.integers(0, 3), ODD_NUMBERS),
)
def test_balanced_sampler(y, batch_size, alpha, at_least):
    sampler = attempt(NUMBER_NAMES, imbalance.BalancedSampler, y, batch_size, alpha, at_least)
    if sampler is REJECTED:
        return
    assert at_least == int(at_least) and 0 <= alpha <= 1
    classes = torch.as_tensor(y).tolist()
    for batch in sampler:
        seen = Counter(classes[i] for i in set(batch))
        assert len(batch) == batch_size and all(seen[c] >= at_least for c in classes)


@fuzz(
    60,
    counts=number_lists,
    batch_size=mostly(st.integers(2, 40), ODD_NUMBERS),
    averaging=st.sampled_from(["pairs", "batch", ""]),
)
def test_suggest(counts, batch_size, averaging):
    found = attempt([*NUMBER_NAMES, "averaging"], tune.suggest, counts, batch_size, averaging)
    if found is not REJECTED:
        assert 1 <= found.settings["eta"] < math.inf


METRIC_NAMES = [
    "predictions",
    "targets",
    "probabilities",
    "n_classes",
    "proportions",
    "rare_class",
    "bins",
    "embeddings",
    "k must",
    "classes",
    "values",
    "level",
    "differences",
    "p_values",
    "seeds",
    "could not convert",
]


@st.composite
def probabilities(draw):
    "Probabilities (n, classes), or something else"
    n, classes = draw(st.integers(0, 12)), draw(st.integers(0, 4))
    p = torch.rand(
        n,
        classes,
        generator=torch.Generator().manual_seed(draw(st.integers(0, 99))),
        dtype=torch.float64,
    )
    if draw(st.booleans()):
        p = p.round()
    p = (p + 1e-9) / (p + 1e-9).sum(1, keepdim=True)
    odd = st.sampled_from(
        [
            p[:, :1],
            p[:, 0] if classes else p,
            p[None],
            p * 2,
            -p,
            p + torch.nan,
            p.log(),
            p.half(),
            p.float().numpy(),
            p.tolist(),
            p.bool(),
            p.long(),
            p.to(torch.complex64),
            p.numpy().astype(object),
            p.numpy().astype(str),
            None,
            "p",
            0.5,
            [[0.5, 0.5], [1.0]],
        ]
    )
    return draw(mostly(st.just(p), odd))


@fuzz(
    200,
    p=probabilities(),
    y=labels(),
    z=labels(),
    n_classes=mostly(st.integers(1, 5), ODD_NUMBERS),
    weights=st.none() | number_lists,
)
def test_metrics_of_labels_and_probabilities(p, y, z, n_classes, weights):
    present = set()
    with contextlib.suppress(ValueError, TypeError, RuntimeError):
        present = set(np.asarray(y).flatten().tolist())

    def check(function, *args, absent=True):
        found = attempt(METRIC_NAMES, function, *args)
        if found is not REJECTED:
            assert 0 <= found <= 1 or math.isnan(found) and absent, (function, found)

    check(metrics.unweighted_accuracy, z, y, absent=False)
    check(metrics.weighted_accuracy, z, y, weights, absent=weights is not None)
    if not isinstance(n_classes, int) or n_classes < 10**6:
        attempt(METRIC_NAMES, metrics.per_class_recall, z, y, n_classes)
    columns = range(max(2, np.shape(p)[1])) if isinstance(p, torch.Tensor) and p.ndim == 2 else ()
    check(metrics.roc_auc, p, y, absent=not set(columns) <= present or not columns)
    check(metrics.average_precision, p, y, n_classes)
    if not isinstance(n_classes, int | float) or not n_classes > 1e6:
        check(metrics.calibration_error, p, y, n_classes, absent=False)
    found = attempt(
        METRIC_NAMES, metrics.evaluate_predictions, p, y, [f"c{i}" for i in columns], weights
    )
    if found is not REJECTED:
        assert math.isfinite(found["unweighted_accuracy"]) and math.isfinite(
            found["calibration_error"]
        )


@fuzz(
    80,
    x=st.tuples(st.integers(0, 8), st.integers(0, 3)).flatmap(
        lambda s: st.sampled_from(DTYPES).flatmap(lambda d: values(s, d))
    ),
    y=labels(),
    k=mostly(st.integers(1, 5), ODD_NUMBERS),
)
def test_knn_accuracy(x, y, k):
    found = attempt(METRIC_NAMES, metrics.knn_unweighted_accuracy, x, y, k)
    if found is not REJECTED:
        assert 0 <= found <= 1 and x.isfinite().all()


finite = st.floats(-1e100, 1e100)


@fuzz(
    100,
    numbers=st.lists(mostly(finite, st.floats()), max_size=6)
    | number_lists
    | st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=8),
    level=mostly(st.floats(0.5, 0.99), ODD_NUMBERS),
    n=mostly(st.integers(1, 20), ODD_NUMBERS),
)
def test_statistics(numbers, level, n):
    plain = all(isinstance(x, int | float) and abs(x) < 1e101 for x in numbers)
    found = attempt(METRIC_NAMES, statistics.mean_interval, numbers, level)
    if found is not REJECTED and plain:
        assert math.isfinite(found[0]) and (len(numbers) == 1 or found[1] <= found[0] <= found[2])
    found = attempt(METRIC_NAMES, statistics.permutation_test, numbers)
    assert found is REJECTED or 0 < found <= 1
    found = attempt(METRIC_NAMES, statistics.holm, numbers)
    assert found is REJECTED or ((found >= 0) & (found <= 1)).all()
    if not isinstance(n, bytes | str | list):
        attempt(METRIC_NAMES, statistics.smallest_p, n)


# Commands

ODD_TEXT = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            ",",
            "-1",
            "0",
            "1",
            "2",
            "3.5",
            "nan",
            "inf",
            "-inf",
            "1e400",
            "99999999999",
            "1" * 5000,
            "²",
            "٣",
            "a,b",
            "0,0",
            "all",
            "é",
            "\0",
            "1:1",
            "0:0",
            "90:10,98:2",
            "1e308:1e308",
            "nan:1",
            ":",
            "none",
            "/dev/null",
            "/etc/passwd",
            "..",
            "a/../b",
            "~",
            "(",
            "imagenet",
            "cuda",
            "mps",
            "cpu",
            "folder",
            "csv",
            "npz",
            "isic2018",
            "CE",
            "CL,CL",
            "AFCL",
            "Shirt,Sandal",
            "0,6",
            "9,1,3",
            "sgd",
            "resnet18",
            "photos",
            "fp16",
            "logit_adjusted",
            "x" * 300,
        ]
    ),
    st.text(st.characters(codec="utf-8"), max_size=5),
)


def arguments(parser, leave=()):
    "Strategy: lists of the parser's own options with odd values"
    known = [
        a
        for a in parser._actions
        if a.option_strings[-1] not in ("--help", "--dry-run", "--out", *leave)
    ]
    one = st.sampled_from(known).flatmap(
        lambda a: st.tuples(st.just(a.option_strings[-1]), ODD_TEXT)
    )
    extra = st.sampled_from(
        [[], [], [], ["--help"], ["--nonsense"], ["stray"], ["--", "x"], ["--e", "1"]]
    )
    return st.tuples(st.lists(one, max_size=3), extra).map(
        lambda both: [text for pair in both[0] for text in pair] + both[1]
    )


def command(call, given, codes=(0, 2, 130)):
    "Exit code of a command that may say one line of error"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = call(given) or 0
        except SystemExit as end:
            code = end.code or 0
    printed = [line for line in err.getvalue().splitlines() if "warn" not in line.lower()]
    assert code in codes and "Traceback" not in err.getvalue(), err.getvalue()
    assert code == 0 or printed and printed[-1].startswith("asymcl-") or "\n  " in err.getvalue(), (
        err.getvalue()
    )
    assert code == 0 or len(printed) == 1 or "\n  " in err.getvalue(), err.getvalue()
    return code


@pytest.fixture(scope="module")
def no_training(folder, photos):
    "The commands read and check as always, and stop where training would begin"

    def batch_seconds(job, data):
        data.dls(job.batch_size, job.sampler_alpha).train.one_batch()
        return 1.0

    def run_jobs(comparison, on_epoch=None):
        comparison.load(comparison.jobs[0])
        raise KeyboardInterrupt
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "batch_seconds", batch_seconds)
        patch.setattr(experiment.Comparison, "run_jobs", run_jobs)
        yield


SMALL = ["--epochs", "1", "--train-total", "60", "--batch-size", "20"]


@fuzz(80, given=arguments(cli._compare_parser()))
def test_compare_command(no_training, folder, given):
    command(cli.compare_command, [*SMALL, *given, "--dry-run", "--out", str(folder / "runs")])
    assert not (folder / "runs").exists()


@fuzz(60, given=arguments(cli._tune_parser()))
def test_tune_command(no_training, folder, given):
    assert (
        command(
            cli.tune_command,
            [*SMALL, *given, "--out", str(folder / f"tune{COUNTS['test_tune_command']}")],
        )
        or "--help" in given
    )


# Kept models

PIXELS = (torch.arange(3 * 64) % 251).to(torch.uint8).view(3, 1, 8, 8)


def kept_model():
    "The description and the bytes of a saved model, small enough that most of them matter, and an encoder of its kind"
    torch.manual_seed(0)
    encoder, head = (
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)),
        torch.nn.Linear(3, 2),
    )
    gallery = Gallery(torch.randn(4, 3), torch.tensor([0, 0, 0, 1]), list("abcd"))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "model.safetensors")
        TrainedModel(
            encoder=encoder,
            head=head,
            classes=("a", "b"),
            image_shape=(1, 8, 8),
            mean=torch.tensor([0.5]),
            std=torch.tensor([0.2]),
            temperature=1.5,
            valid_logits=torch.randn(6, 2),
            valid_labels=torch.arange(6) % 2,
            gallery=gallery,
        ).save(file)
        with safe_open(file, "pt") as opened:
            described = opened.metadata()["asymcl"]
        return described.encode(), file.read_bytes(), encoder


DESCRIBED, TENSORS, ENCODER = kept_model()


def with_digest(described, tensors):
    "The bytes of a model file with this description and, as an attacker would make it, the right digest"
    start = 8 + int.from_bytes(tensors[:8], "little")
    try:
        header = dict(json.loads(tensors[8:start]))
        text = described.decode()
    except (ValueError, TypeError):
        return tensors
    digest = hashlib.sha256(described + tensors[start:]).hexdigest()
    header["__metadata__"] = dict(asymcl=text, sha256=digest)
    packed = json.dumps(header).encode()
    return len(packed).to_bytes(8, "little") + packed + tensors[start:]


@fuzz(
    80,
    files=st.one_of(
        st.tuples(damaged(DESCRIBED), st.just(TENSORS)),
        st.tuples(st.just(DESCRIBED), damaged(TENSORS)),
    ),
)
def test_load_model(folder, files):
    file = folder / "broken model.safetensors"
    file.write_bytes(with_digest(*files))
    model = attempt([file], load_model, file, ENCODER)
    if model is not REJECTED:
        found = attempt(["not finite"], model.predict, PIXELS)
        if found is not REJECTED:
            assert torch.isfinite(found[1]).all() and found[1].shape == (3, 2)


numbers = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.floats())
leaves = st.one_of(
    st.none(), numbers, st.text(max_size=4), st.sampled_from([torch.ones(2), torch.zeros(0)])
)
keys = st.one_of(st.text(max_size=3), st.integers(-9, 9))
nested = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner, max_size=3),
    ),
)


def same(a, b):
    "Whether two states are alike, NaN and tensors included"
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.equal(b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


@fuzz(60, state=st.dictionaries(keys, nested, max_size=3))
def test_states_come_back(folder, state):
    save_state(folder / "state.pt", state)
    assert same(state, load_state(folder / "state.pt"))


@fuzz(
    60,
    logits=st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), max_size=6),
    recall=ODD_NUMBERS,
)
def test_temperature_and_threshold(logits, recall):
    x = torch.tensor(logits).view(-1, 2)
    y = torch.arange(len(x)) % 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="temperature .* is at a bound")
        found = attempt(["logits"], fit_temperature, x, y)
    assert found is REJECTED or 1e-3 <= found <= 1e3
    p = x.nan_to_num().softmax(1)[:, 1]
    found = attempt(["recall", "scores"], threshold_for_recall, p, y == 1, recall, None)
    assert found is REJECTED or (p[y == 1] >= found).float().mean() >= recall - 1e-6


@pytest.fixture(scope="module")
def asked(folder, photos):
    "A model without a custom encoder, and what it is applied to"
    from asymcl.models import small_encoder

    TrainedModel(
        encoder=small_encoder(3),
        head=torch.nn.Linear(256, 2),
        classes=("a", "b"),
        image_shape=(3, 16, 16),
        mean=torch.full((3,), 0.5),
        std=torch.full((3,), 0.2),
    ).save(folder / "small.safetensors")
    return [str(folder / "small.safetensors"), "photos"]


PREDICT = [
    "--out",
    "--embeddings",
    "--recall",
    "--precision",
    "--cost-ratio",
    "--coverage",
    "--prevalence",
    "--confidence",
    "--rare",
    "--neighbours",
    "--encoder",
    "--device",
]


@fuzz(
    40,
    given=st.lists(st.tuples(st.sampled_from(PREDICT), ODD_TEXT), max_size=3),
    swap=st.integers(0, 9),
    path=ODD_TEXT,
)
def test_predict_command(folder, asked, given, swap, path):
    words = [text for pair in given for text in pair if "/dev" not in text and "/etc" not in text]
    model, what = (path, asked[1]) if swap == 0 else (asked[0], path) if swap == 1 else asked
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command(predict.predict_command, [model, what, *words], codes=(0, 1, 2))
