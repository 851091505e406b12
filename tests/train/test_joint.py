"""Joint training: a toy with a known answer, failures, precision, chunks and mixtures."""

from dataclasses import replace

import pytest
import torch
from fastai.callback.mixup import MixUp
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from torch import nn

from asymcl.data.datasets import ImageData
from asymcl.decisions import Threshold
from asymcl.infer import load_model
from asymcl.infer.card import with_operating_point
from asymcl.losses import ACL, AFCL, CL, NTXentLoss, SupMinLoss, SupPrototypeLoss
from asymcl.models import NormalizedLinear, UnitLengthLinear
from asymcl.train.baselines import BCL, KCL
from asymcl.train.guards import NonFiniteError, WatchEmbeddings
from asymcl.train.joint import ClassifierBCL, JointLearner
from asymcl.train.two_stage import GradientCache

pytestmark = pytest.mark.filterwarnings("ignore")
RATE = 1e-2
OPPOSITE = torch.eye(4)[:1] * torch.tensor([[1.0], [-1.0]])
LOSSES = [
    CL(),
    AFCL(eta=3.0),
    KCL(),
    BCL(2, size=4),
    ClassifierBCL(),
    SupMinLoss(eta=3.0),
    NTXentLoss(),
    SupPrototypeLoss(OPPOSITE),
]


def two_copies(images):
    return torch.stack([images, images.flip(3)], 1)


def striped(noise=40):
    "192 images of 8 x 8 pixels, every eighth of the rare class: vertical instead of horizontal stripes"
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(192) % 8 == 0).long()
    stripes = (torch.arange(8) % 4 < 2).float() * 100 + 60
    images = torch.where(labels[:, None, None] == 1, stripes, stripes[:, None])[:, None]
    images = images + noise * torch.randn(images.shape, generator=generator)
    splits = dict(train=torch.arange(96), valid=torch.arange(96, 144), test=torch.arange(144, 192))
    pixels = images.clamp(0, 255).byte()
    return ImageData(pixels, labels, ["a", "b"], splits, "striped", "made here", 0)


def tiny_encoder(norm=True):
    between = nn.BatchNorm2d(4) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(1, 4, 3), between, nn.ReLU(), nn.Flatten(), nn.Linear(144, 6))


def plain_sgd(params, lr=RATE, **kwargs):
    return SGD(params, lr, wd=0)


def make(loss=None, norm=True, **kwargs):
    set_seed(0)
    learn = JointLearner(
        striped().dls(16),
        tiny_encoder(norm),
        loss or CL(),
        **dict(make_views=two_copies, embedding_size=4) | kwargs,
    )
    learn.joint.remove_cb(learn.joint.progress)
    learn.joint.logger = lambda *_: None
    return learn


def weights(learn):
    return [p.detach().clone() for p in learn.joint.model.parameters()]


def farthest(a, b):
    "Largest difference between the weights of two learners"
    return max((x - y).abs().max().item() for x, y in zip(weights(a), weights(b), strict=True))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_every_loss_learns_two_kinds_of_stripes(loss):
    learn = make(loss)
    before = weights(learn)
    learn.fit(6, RATE)
    assert not any(a.equal(b) for a, b in zip(before, weights(learn), strict=True))
    scores = learn.evaluate("test")
    assert scores["roc_auc"] > 0.95 and scores["unweighted_accuracy"] > 0.8


def test_centres_and_their_perceptron_are_trained():
    loss = ClassifierBCL(temperature=nn.Parameter(torch.tensor(0.2)))
    learn = make(loss)
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    learn.fit(1, RATE)
    still = {name for name, p in loss.named_parameters() if p.equal(before[name])}
    assert still <= {"centre.0.bias"}  # which batch norm removes
    assert loss.centres().norm(dim=1).allclose(torch.ones(2))


def test_counts_come_from_any_loader_and_from_new_data():
    learn = make()
    assert learn.joint.loss_func.classification.log_proportions.exp().tolist() == pytest.approx(
        [7 / 8, 1 / 8]
    )
    dls = striped().dls(16)
    del dls.image_data
    learn.dls = dls
    assert learn._train_counts().tolist() == [84, 12]
    few = striped()
    few.splits["train"] = torch.arange(1, 56)
    learn.dls = few.dls(16)
    assert learn.joint.loss_func.classification.log_proportions.exp().tolist() == pytest.approx(
        [49 / 55, 6 / 55]
    )


def test_guards_see_the_embeddings(monkeypatch):
    seen = []
    monkeypatch.setattr(
        WatchEmbeddings, "after_train", lambda self: seen.append(tuple(self.pred.shape))
    )
    make().fit(1, RATE)
    assert seen == [(16, 2, 4)]


def test_nan_stops_the_training_and_names_the_image():
    def broken(images):
        views = two_copies(images)
        views[3] = torch.nan
        return views

    learn = make()
    learn.joint.random_views.make_views = broken
    with pytest.raises(NonFiniteError, match="output is not finite in epoch 1, batch 1 .NaN or"):
        learn.fit(1, RATE)


def test_bf16_trains_as_fp32():
    losses = []
    for precision in ("fp32", "bf16"):
        learn = make(ACL(eta=3.0), precision=precision)
        learn.fit(2, RATE)
        assert learn.precision == precision
        losses.append(learn.joint.recorder.values[-1][0])
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize("loss", [CL, NTXentLoss, ClassifierBCL])
def test_gradient_cache_changes_nothing_but_memory(loss):
    learners = []
    for cbs in (None, GradientCache(5)):
        learners.append(make(loss(), norm=False, opt_func=plain_sgd, cbs=cbs))
        learners[-1].fit(1, RATE)
    assert farthest(*learners) < 1e-5


@pytest.mark.parametrize(
    "loss, message",
    [
        (CL(), None),
        (NTXentLoss(), None),
        (SupMinLoss(), "labels must be integers with rare"),
        (SupPrototypeLoss(OPPOSITE), "labels must be integers with prototypes"),
        (ClassifierBCL(), r"labels must have shape \(16,\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_mixed_labels_train_or_name_the_problem(loss, message):
    learn = make(loss)
    if message is None:
        learn.fit(1, RATE, cbs=MixUp())
        assert learn.evaluate("valid")["roc_auc"] > 0
        return
    with pytest.raises(ValueError, match=message):
        learn.fit(1, RATE, cbs=MixUp())


def test_predictions_of_the_fastai_learner_are_of_the_classifier(tmp_path):
    learn = make(ClassifierBCL())
    learn.fit(1, RATE)
    p, y, classes = learn.joint.get_preds(dl=learn.loader("test"), with_decoded=True)
    assert p.shape == (48, 2) and classes.equal(p.argmax(1))
    assert p.sum(1).allclose(torch.ones(48))
    before = weights(learn)
    learn.joint.path = tmp_path
    learn.joint.lr_find(num_it=5, show_plot=False)
    assert all(a.equal(b) for a, b in zip(before, weights(learn), strict=True))


def test_a_loaded_model_decides_as_its_file_until_it_is_trained_further(tmp_path):
    learn, file = make(), tmp_path / "model.safetensors"
    learn.fit(1, RATE)
    learn.save(file)
    images = learn.dls.image_data.images
    for change in (
        lambda model: model.at_prevalence("b", 0.9),
        lambda model: with_operating_point(model, Threshold(1, 0.01, 1, 0, 1)),
    ):
        change(load_model(file, tiny_encoder())).save(tmp_path / "changed.safetensors")
        learn.load(tmp_path / "changed.safetensors")
        names, p = load_model(tmp_path / "changed.safetensors", tiny_encoder()).predict(images)
        for model in (learn, learn.trained_model()):
            assert model.predict(images)[0] == names
            assert model.predict(images)[1].allclose(p)
    learn.fit(1, RATE)
    assert "operating_point" not in learn.trained_model().about


@pytest.mark.parametrize(
    "loss, head, message",
    [
        (
            "cross_entropy",
            UnitLengthLinear(6, 2),
            "is UnitLengthLinear, that of the learner Linear",
        ),
        (
            "ldam",
            NormalizedLinear(6, 2, 10.0),
            "with scale 10, that .* NormalizedLinear with scale 30",
        ),
    ],
)
def test_a_file_with_another_kind_of_head_is_not_loaded(loss, head, message, tmp_path):
    learn, file = make(classifier_loss=loss), tmp_path / "model.safetensors"
    learn.fit(1, RATE)
    projection = learn.joint.model[1].projection
    replace(learn.trained_model(), head=head, projection_head=projection).save(file)
    before = weights(learn)
    with pytest.raises(ValueError, match=message):
        learn.load(file)
    assert all(a.equal(b) for a, b in zip(before, weights(learn), strict=True))
