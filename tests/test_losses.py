"""Properties of the losses on random batches."""

from unittest.mock import patch

import pytest
import torch
from fastai.layers import NoneReduce
from hypothesis import given, settings
from hypothesis import strategies as st

from asymcl.losses import ACL, AFCL, CL, FCL, NTXentLoss, SupMinLoss, SupPrototypeLoss
from asymcl.losses import asymmetric_focal_contrastive_loss as loss
from asymcl.train.baselines import BCL, KCL

batches = st.fixed_dictionaries(
    dict(
        labels=st.lists(st.integers(0, 3), min_size=1, max_size=12),
        width=st.integers(1, 5),
        views=st.integers(1, 3),
        copies=st.booleans(),
        seed=st.integers(0, 2**31),
    )
)
settings_of_loss = st.fixed_dictionaries(
    dict(
        gamma=st.floats(0, 12),
        eta=st.floats(0, 300),
        temperature=st.floats(0.005, 2),
        averaging=st.sampled_from(["pairs", "batch"]),
    )
)


def make(labels, width, views, copies, seed):
    "Embeddings (n, views, width), all images alike with `copies`, and labels"
    x = torch.randn(
        1 if copies else len(labels), views, width, generator=torch.Generator().manual_seed(seed)
    )
    return x.expand(len(labels), -1, -1).clone().requires_grad_(), torch.tensor(labels)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(batches, settings_of_loss)
def test_value_and_gradient_are_finite_and_order_does_not_matter(batch, kwargs):
    x, y = make(**batch)
    value = loss(x, y, reduction="none", **kwargs)
    assert value.shape == x.shape[:2]
    assert value.isfinite().all() and (value >= 0).all()
    value.mean().backward()
    assert x.grad.isfinite().all()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(batch["seed"]))
    torch.testing.assert_close(
        loss(x[order], y[order], reduction="none", **kwargs), value[order], rtol=1e-3, atol=1e-3
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(batches, settings_of_loss)
def test_names_of_classes_do_not_matter_and_a_mask_is_its_labels(batch, kwargs):
    x, y = make(**batch)
    value = loss(x, y, **kwargs)
    torch.testing.assert_close(loss(x, 100 - 7 * y, **kwargs), value)
    torch.testing.assert_close(loss(x, pair_mask=y[:, None] == y, **kwargs), value)
    torch.testing.assert_close(loss(x, torch.nn.functional.one_hot(y).float(), **kwargs), value)


kinds_of_pairs = st.sampled_from(["classes", "soft labels", "mask", "weights", "ignored", "rare"])


def make_pairs(kind, y, references, generator, reference_only):
    "Labels or mask of a kind, among the images and a reference set, with classes for both drawn alike"
    columns = references + (0 if reference_only else len(y))
    if kind == "mask":
        return dict(pair_mask=torch.rand(len(y), columns, generator=generator) < 0.5)
    if kind == "weights":
        return dict(pair_mask=torch.rand(len(y), columns, generator=generator))
    if kind == "ignored":
        return dict(pair_mask=torch.randint(-1, 2, (len(y), columns), generator=generator))
    far = torch.randint(0, 4, (references,), generator=generator)
    if kind == "soft labels":
        y, far = (torch.nn.functional.one_hot(o, 4).float() * 0.7 + 0.3 / 4 for o in (y, far))
    rare = dict(rare=(1, 2)) if kind == "rare" else {}
    return dict(labels=y, **rare, **(dict(reference_labels=far) if references else {}))


def losses_and_gradients(x, reference, upstream, kwargs):
    "Losses and the gradients of embeddings, reference and temperature, in float64"
    x, reference = x.detach().clone().requires_grad_(), reference.detach().clone().requires_grad_()
    temperature = torch.tensor(kwargs["temperature"], dtype=torch.float64).requires_grad_()
    kwargs = dict(kwargs, temperature=temperature)
    value = loss(x, **(dict(reference=reference) if len(reference) else {}), **kwargs)
    total = (value * upstream).sum() if value.ndim else value
    grads = torch.autograd.grad(total, (x, reference, temperature), allow_unused=True)
    return [o.double() for o in (value.detach(), *grads) if o is not None]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    batches,
    settings_of_loss,
    kinds_of_pairs,
    st.integers(0, 6),
    st.integers(1, 40),
    st.sampled_from(["mean", "sum", "none", "mean_positive"]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.booleans(),
    st.booleans(),
)
def test_fused_in_blocks_of_any_size_is_plain(
    batch, kwargs, kind, references, rows, reduction, dtype, normalize, reference_only
):
    x, y = make(**batch)
    generator = torch.Generator().manual_seed(batch["seed"])
    reference, upstream = (
        torch.randn(references, batch["width"], generator=generator),
        torch.randn(x.shape[:2], generator=generator),
    )
    kwargs = dict(
        kwargs,
        reduction=reduction,
        normalize=normalize,
        reference_only=reference_only and references > 0,
    )
    kwargs |= make_pairs(kind, y, references, generator, kwargs["reference_only"])
    if not normalize:
        x, reference = (torch.nn.functional.normalize(o, dim=-1) for o in (x, reference))
    x, reference = x.to(dtype), reference.to(dtype)
    exact = losses_and_gradients(
        x.double(), reference.double(), upstream, dict(kwargs, backend="plain")
    )
    with patch("asymcl.fused._block_rows", lambda columns: rows):
        fused = losses_and_gradients(x, reference, upstream, dict(kwargs, backend="fused"))
    value, digits = {torch.float64: (1e-8, 1e-8), torch.float32: (1e-4, 1e-3)}.get(
        dtype, (1e-4, 2e-2)
    )
    largest = torch.finfo(
        dtype
    ).max  # a gradient beyond it is infinite in the type of the embeddings
    for i, (a, b) in enumerate(zip(fused, exact, strict=True)):
        a, b = a.clamp(-largest, largest), b.clamp(-largest, largest)
        power = 0 if i == 0 else 2 if i == len(exact) - 1 else 1  # value, temperature, embeddings
        scale = (1 + kwargs["eta"]) / kwargs["temperature"] ** power
        assert (a - b).abs().max() <= (digits if i else value) * (b.abs().max() + 1e-3 * scale), (
            f"output {i}"
        )


modules = [CL(), FCL(), ACL(), AFCL(), KCL(), BCL(2, size=3)]
modules += [SupMinLoss(eta=3.0), NTXentLoss(), SupPrototypeLoss(torch.eye(3))]


@pytest.mark.parametrize("module", modules, ids=repr)
def test_fastai_sees_the_loss_of_each_image_and_the_reduction_comes_back(module):
    x, y = torch.randn(4, 2, 3), torch.tensor([0, 0, 1, 1])
    with NoneReduce(module) as each:
        assert each(x, y).shape == (4, 2)
    assert module(x, y).shape == () and module.reduction == "mean"
