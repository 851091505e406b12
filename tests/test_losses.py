"""Properties of the losses on batches that nobody thought of."""
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asymcl.losses import asymmetric_focal_contrastive_loss as loss

batches = st.fixed_dictionaries(dict(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=12), width=st.integers(1, 5), views=st.integers(1, 3),
    copies=st.booleans(), seed=st.integers(0, 2**31)))
settings_of_loss = st.fixed_dictionaries(dict(
    gamma=st.floats(0, 12), eta=st.floats(0, 300), temperature=st.floats(0.005, 2), averaging=st.sampled_from(["pairs", "batch"])))


def make(labels, width, views, copies, seed):
    "Embeddings (n, views, width), all images alike with `copies`, and labels"
    x = torch.randn(1 if copies else len(labels), views, width, generator=torch.Generator().manual_seed(seed))
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
    torch.testing.assert_close(loss(x[order], y[order], reduction="none", **kwargs), value[order], rtol=1e-3, atol=1e-3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(batches, settings_of_loss)
def test_names_of_classes_do_not_matter_and_a_mask_is_its_labels(batch, kwargs):
    x, y = make(**batch)
    value = loss(x, y, **kwargs)
    torch.testing.assert_close(loss(x, 100 - 7 * y, **kwargs), value)
    torch.testing.assert_close(loss(x, pair_mask=y[:, None] == y, **kwargs), value)
    torch.testing.assert_close(loss(x, torch.nn.functional.one_hot(y).float(), **kwargs), value)
