"""CUDA against the CPU: losses, both stages, resuming, all GPUs together, data larger than the memory, torch.compile.

Skipped where there is no CUDA device. ASYMCL_TEST_DEVICE=cpu runs the same tests on the CPU, which tries their logic."""

import copy
import os
import subprocess
import sys
import textwrap
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.torch_core import default_device, defaults, set_seed
from torch import nn

from asymcl.data.datasets import ImageData, fashion_mnist
from asymcl.losses import ACL, AFCL, CL, FCL
from asymcl.models import small_encoder
from asymcl.train.two_stage import TwoStageLearner

DEVICE = torch.device(os.environ.get("ASYMCL_TEST_DEVICE", "cuda"))
CUDA = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="no CUDA device"),
]
LOSSES = {
    "CL": CL,
    "FCL": lambda **kwargs: FCL(gamma=2.0, **kwargs),
    "ACL": lambda **kwargs: ACL(eta=30.0, averaging="batch", **kwargs),
    "AFCL": lambda **kwargs: AFCL(gamma=2.0, eta=120.0, **kwargs),
}
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.half}
# Relative error of value and gradient that each type allows
TOLERANCES = {
    "fp64": (1e-9, 1e-8),
    "fp32": (1e-4, 1e-3),
    "bf16": (1e-4, 2e-2),
    "fp16": (1e-4, 2e-2),
}


@pytest.fixture(autouse=True)
def on_device():
    "fastai's default device, and convolutions that repeat"
    before, exact = defaults.use_cuda, torch.backends.cudnn.deterministic
    default_device(CUDA)
    torch.backends.cudnn.deterministic = True
    yield
    defaults.use_cuda, torch.backends.cudnn.deterministic = before, exact


def make_batch(n=96, width=32):
    "Embeddings (n, 2, width) in float64 and the labels of three classes, one of them rare"
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 16 // 7
    return torch.randn(n, 2, width, generator=generator, dtype=torch.float64), labels


def value_and_gradient(loss, x, labels):
    "Both, in float64 on the CPU"
    x = x.detach().clone().requires_grad_()
    value = loss(x, labels)
    value.backward()
    return value.detach().double().cpu(), x.grad.double().cpu()


def assert_close(found, expected, kind):
    "Value and gradient agree as well as the type allows"
    for a, b, tolerance in zip(found, expected, TOLERANCES[kind], strict=True):
        assert (a - b).norm() <= tolerance * b.norm(), f"{(a - b).norm() / b.norm():.1e}"


@pytest.mark.parametrize("backend", ["fused", "plain"])
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_that_of_float64_on_the_cpu(name, kind, backend):
    x, labels = make_batch()
    x = x.to(DTYPES[kind])
    expected = value_and_gradient(LOSSES[name](backend="plain"), x.double(), labels)
    there = value_and_gradient(LOSSES[name](backend=backend), x.to(DEVICE), labels.to(DEVICE))
    assert_close(there, expected, kind)


@pytest.mark.parametrize("kind", ["fp64", "fp32"])
@pytest.mark.parametrize("name", LOSSES)
def test_fused_in_several_blocks_is_that_of_float64_on_the_cpu(name, kind, monkeypatch):
    x, labels = make_batch()
    x, rows = x.to(DTYPES[kind]), Mock(return_value=37)  # of 192 anchors
    expected = value_and_gradient(LOSSES[name](backend="plain"), x.double(), labels)
    monkeypatch.setattr("asymcl.fused._block_rows", rows)
    there = value_and_gradient(LOSSES[name](backend="fused"), x.to(DEVICE), labels.to(DEVICE))
    assert rows.called
    assert_close(there, expected, kind)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", LOSSES)
def test_fused_is_plain_under_autocast(name, kind):
    x, labels = make_batch()
    torch.manual_seed(0)
    layer, labels = nn.Linear(32, 16).to(DEVICE), labels.to(DEVICE)
    found = {}
    for backend in ("fused", "plain"):
        layer.zero_grad()
        with torch.autocast(DEVICE.type, DTYPES[kind], enabled=kind != "fp32"):
            embeddings = layer(x.float().to(DEVICE))
            assert embeddings.dtype == DTYPES[kind]
            value = LOSSES[name](backend=backend)(embeddings, labels)
        value.backward()
        found[backend] = value.detach().double().cpu(), layer.weight.grad.double().cpu()
    assert_close(found["fused"], found["plain"], kind)


def learner(**kwargs):
    "A small two-stage learner; the same weights and batches each time"
    set_seed(0)
    data = fashion_mnist(train_total=200)
    return TwoStageLearner(data.dls(50), small_encoder(), AFCL(gamma=2.0, eta=10.0), **kwargs)


def train(learn, epochs=2, **kwargs):
    "Stage 1"
    with learn.contrastive.no_bar(), learn.contrastive.no_logging():
        learn.fit_contrastive(epochs, **kwargs)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_both_stages(precision):
    if precision == "fp16" and not CUDA:
        pytest.skip("fp16 trains on CUDA only")
    learn = learner(precision=precision, classifier_loss="cross_entropy")
    train(learn)
    head = learn.new_classifier()
    with head.no_bar(), head.no_logging():
        learn.fit_classifier(5)
    parameters = [*learn.contrastive.model.parameters(), *head.model.parameters()]
    assert all(p.device.type == DEVICE.type and p.isfinite().all() for p in parameters)
    metrics = learn.evaluate("valid")
    assert metrics["roc_auc"] > 0.6
    images = learn.dls.valid.one_batch()[0]
    with torch.no_grad():
        there = learn.encoder.eval()(images).cpu()
        here = copy.deepcopy(learn.encoder).cpu()(images.cpu())
    torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-2)


class Stop(Callback):
    "Ends a training as an error in its second epoch would"

    def before_epoch(self):
        if self.epoch == 1:
            raise RuntimeError("stopped")


def test_resume_gives_the_weights_of_a_training_that_was_not_stopped(tmp_path):
    whole = learner()
    train(whole, 3, keep=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        train(learner(), 3, keep=tmp_path / "stopped", cbs=[Stop()])
    resumed = learner()
    train(resumed, 3, keep=tmp_path / "stopped")
    models = [learn.contrastive.model.cpu().state_dict() for learn in (whole, resumed)]
    for name, tensor in models[0].items():  # atomic additions of CUDA may round in another order
        tolerance = 1e-5 if CUDA else 0
        torch.testing.assert_close(models[1][name], tensor, rtol=tolerance, atol=tolerance)


RANKS = """
    import copy, os, torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from asymcl.distributed import DistributedLoss, join_ranks, leave_ranks, world_size
    from asymcl.losses import AFCL

    rank, cuda = int(os.environ["RANK"]), torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    join_ranks(timeout=60)
    if not dist.is_initialized():  # join_ranks does nothing for one rank, DDP needs a group
        dist.init_process_group("nccl" if cuda else "gloo")
    own, total = (torch.full((3,), rank + 1.0, device=device) for _ in range(2))
    parts = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    dist.all_reduce(total)
    assert [part.tolist() for part in parts] == [3 * [i + 1.0] for i in range(len(parts))]
    assert torch.equal(total, sum(parts))
    torch.manual_seed(0)
    model, x = torch.nn.Linear(16, 8).to(device), torch.randn(24, 2, 16).to(device)
    y, loss = (torch.arange(24) % 5 // 3).to(device), AFCL(gamma=2.0, eta=10.0)
    whole = copy.deepcopy(model)
    expected = loss(whole(x), y)
    expected.backward()
    parallel = DistributedDataParallel(model)
    part = slice(rank, None, world_size())
    value = DistributedLoss(loss)(parallel(x[part]), y[part])
    value.backward()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(model.parameters(), whole.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    if rank == 0:
        print("ranks", dist.get_world_size())
    leave_ranks()
    if dist.is_initialized():  # one rank
        dist.destroy_process_group()
"""


@pytest.mark.parametrize("every", [False, True], ids=["one", "every"])
def test_gpus_together_give_the_loss_of_one(every, tmp_path):
    ranks = (torch.cuda.device_count() if CUDA else 2) if every else 1
    if every and ranks == 1:
        pytest.skip("there is one GPU: no exchange between GPUs is tested")
    (tmp_path / "ranks.py").write_text(textwrap.dedent(RANKS))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", str(ranks), "ranks.py"],
        cwd=tmp_path,
        env=os.environ | ({} if CUDA else {"CUDA_VISIBLE_DEVICES": ""}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"ranks {ranks}\n" in done.stdout


@pytest.fixture
def little_memory(monkeypatch):
    "Allows this process 256 MiB of the GPU beyond what it holds; the number of these bytes"
    allowed = 2**28
    monkeypatch.setattr("asymcl.data.datasets.free_memory", lambda device: allowed)
    if not CUDA:
        yield allowed
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + allowed) / total)
    yield allowed
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_images_that_do_not_fit_the_device_are_trained_on(little_memory):
    side = 128
    n = 3 * little_memory // 2 // (3 * side * side)
    images = torch.zeros(1, dtype=torch.uint8).expand(n, 3, side, side).contiguous()
    images[::10] = 255
    labels = (torch.arange(n) % 10 == 0).long()
    order = torch.arange(n)
    splits = dict(train=order[: n - 40], valid=order[n - 40 : n - 20], test=order[n - 20 :])
    data = ImageData(images, labels, ["dark", "bright"], splits, "squares", "made here", 0)
    layers = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(48, 8))
    batches = iter(data.dls(16).train)
    for _ in range(3):
        x, y = next(batches)
        assert x.device.type == DEVICE.type
        loss = CL()(F.normalize(layers.to(DEVICE)(x), dim=1), y)
        loss.backward()
        assert loss.isfinite()


@pytest.mark.parametrize("backend", ["fused", "plain"])
def test_compiled_training_step_is_the_eager_one(backend):
    x, labels = make_batch()
    x, labels = x.float().to(DEVICE), labels.to(DEVICE)
    torch.manual_seed(0)
    eager, loss = nn.Linear(32, 16).to(DEVICE), AFCL(gamma=2.0, eta=10.0, backend=backend)
    other = copy.deepcopy(eager)

    def step(model, x, labels):
        return loss(model(x), labels)

    compiled = torch.compile(step, backend="inductor" if CUDA else "eager")
    values = [f(m, x, labels) for f, m in ((step, eager), (compiled, other))]
    for value in values:
        value.backward()
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.weight.grad, eager.weight.grad, rtol=1e-3, atol=1e-4)
