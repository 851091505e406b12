"""What fastai users do with a Learner works on both stages, or raises an error that says why."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import Learner
from fastai.callback.tracker import (
    EarlyStoppingCallback,
    ReduceLROnPlateau,
    SaveModelCallback,
    TerminateOnNaNCallback,
)
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.basics import Callback
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from torch import nn

from asymcl.baselines import BCL, DeferredReweighting, LDAMLoss, LearnPrototypes
from asymcl.datasets import ImageData
from asymcl.guards import NonFiniteError, StopNonFinite
from asymcl.losses import AFCL, CL
from asymcl.two_stage import TwoStageLearner, fused_adam

pytestmark = pytest.mark.filterwarnings("ignore")
RATE = 1e-2


def two_copies(images):
    return torch.stack([images, images.flip(3)], 1)


def small_data():
    "64 random images of 8 x 8 pixels, every second of the rare class"
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (112, 1, 8, 8), dtype=torch.uint8, generator=generator)
    splits = dict(train=torch.arange(64), valid=torch.arange(64, 96), test=torch.arange(96, 112))
    return ImageData(images, torch.arange(112) % 2, ["a", "b"], splits, "tiny", "made here", 0)


def tiny_encoder(channels=1):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6)
    )


def make(loss=None, encoder=None, seed=0, batch_size=16, **kwargs):
    set_seed(seed)
    learn = TwoStageLearner(
        small_data().dls(batch_size),
        encoder or tiny_encoder(),
        loss or AFCL(),
        **dict(make_views=two_copies, embedding_size=4) | kwargs,
    )
    learn.contrastive.remove_cb(learn.contrastive.progress)
    learn.contrastive.logger = lambda *_: None
    return learn


def moved(learn, train):
    "Whether each part has moved in every tensor (True), in some ('some') or in none (False): encoder, projection head"
    model = learn.contrastive.model
    before = [[p.detach().clone() for p in part.parameters()] for part in model]
    train(learn.contrastive)
    found = []
    for part, old in zip(model, before, strict=True):
        changed = [not p.equal(o) for p, o in zip(part.parameters(), old, strict=True)]
        found.append(True if all(changed) else "some" if any(changed) else False)
    return found


# Groups of parameters


@pytest.mark.parametrize("opt_func", [fused_adam, Adam])
def test_freeze_trains_the_projection_head_alone(opt_func):
    learn = make(opt_func=opt_func)
    learn.contrastive.freeze()
    # batch normalisation is trained in frozen groups, too, as everywhere in fastai
    trained = [p.requires_grad for p in learn.contrastive.model.parameters()]
    assert trained == [False, False, True, True, False, False] + 4 * [True]
    frozen = [p.detach().clone() for p in learn.encoder[0].parameters()]
    assert moved(learn, lambda stage: stage.fit(1, RATE)) == ["some", True]
    assert all(a.equal(b) for a, b in zip(frozen, learn.encoder[0].parameters(), strict=True))


def test_frozen_parameters_have_no_state_and_unfreeze_trains_all():
    learn = make()
    learn.contrastive.train_bn = False
    learn.contrastive.freeze()
    assert moved(learn, lambda stage: stage.fit(1, RATE)) == [False, True]
    state = learn.contrastive.opt.opt.state
    assert not any(p in state for p in learn.encoder.parameters())
    learn.contrastive.unfreeze()
    assert moved(learn, lambda stage: stage.fit(1, RATE)) == [True, True]


def test_frozen_parameters_with_left_over_gradients_do_not_move():
    learn = make()
    learn.contrastive.train_bn = False
    learn.contrastive.fit(1, RATE, cbs=GradientAccumulation(1000))
    assert learn.encoder[0].weight.grad is not None
    learn.contrastive.freeze()
    assert moved(learn, lambda stage: stage.fit(1, RATE)) == [False, True]


class Rates(Callback):
    "Notes the rates, decays and momenta of fastai's groups and of PyTorch's"

    def before_step(self):
        self.lrs = [hyper["lr"] for hyper in self.opt.hypers]
        self.torch_lrs = [g["lr"] for g in self.opt.opt.param_groups]
        self.decays = [g["weight_decay"] for g in self.opt.opt.param_groups]


@pytest.mark.parametrize(
    "lr, rates",
    [
        (1e-3, [1e-3, 1e-3]),
        (slice(1e-5, 1e-3), [1e-5, 1e-3]),
        (slice(1e-3), [1e-4, 1e-3]),
        ([1e-4, 1e-2], [1e-4, 1e-2]),
    ],
)
def test_rates_of_the_groups(lr, rates):
    learn = make(cbs=Rates())
    learn.contrastive.fit(1, lr)
    assert learn.contrastive.rates.lrs == pytest.approx(rates)
    assert learn.contrastive.rates.torch_lrs == pytest.approx(np.repeat(rates, 2).tolist())
    learn.fit_contrastive(1, lr, div=1.0, pct_start=0.99)
    assert np.divide(learn.contrastive.rates.lrs, rates) == pytest.approx(2 * [1.0], rel=0.3)


def test_decay_is_of_weights_alone():
    learn = make(cbs=Rates())
    learn.contrastive.fit(1, 0.1, wd=0.5)
    assert learn.contrastive.rates.decays == [0.5, 0.0, 0.5, 0.0]
    for decayed, exempt in zip(*2 * [iter(learn.contrastive.opt.opt.param_groups)], strict=True):
        assert {p.ndim > 1 for p in decayed["params"]} == {True}
        assert {p.ndim > 1 for p in exempt["params"]} == {False}


def test_custom_splitters_and_default_one():
    def three(model):
        return [
            list(model[0][0].parameters()),
            [*model[0][1].parameters(), *model[0][4].parameters()],
            list(model[1].parameters()),
        ]

    learn = make(splitter=three)
    learn.contrastive.fit(1, slice(1e-4, 1e-2))
    assert [h["lr"] for h in learn.contrastive.opt.hypers] == pytest.approx([1e-4, 1e-3, 1e-2])
    plain = Learner(small_data().dls(16), tiny_encoder(), CrossEntropyLossFlat(), fused_adam)
    plain.fit(1)
    assert len(plain.opt.hypers) == 1


def test_fine_tune_and_lr_find(tmp_path):
    learn = make()
    learn.contrastive.path = tmp_path
    weights = [p.detach().clone() for p in learn.contrastive.model.parameters()]
    assert learn.contrastive.lr_find(num_it=10, show_plot=False).valley > 0
    assert all(
        a.equal(b) for a, b in zip(weights, learn.contrastive.model.parameters(), strict=True)
    )
    learn.contrastive.fine_tune(1, 1e-2)
    encoder, head = (h["lr"] for h in learn.contrastive.opt.hypers)
    assert head / encoder == pytest.approx(100)
    assert all(p.requires_grad for p in learn.encoder.parameters())


# Callbacks


class Steps(Callback):
    def before_fit(self):
        self.steps = 0

    def after_step(self):
        self.steps += 1


@pytest.mark.parametrize("images, steps", [(16, 4), (32, 2), (64, 1)])
def test_gradient_accumulation_counts_images(images, steps):
    learn = make(cbs=Steps())
    learn.contrastive.fit(1, RATE, cbs=GradientAccumulation(images))
    assert learn.contrastive.steps.steps == steps


@pytest.mark.parametrize("seen", [MixUp, CutMix])
def test_mixing_gives_the_loss_soft_labels_of_all_views(seen):
    got = []

    class Noted(CL):
        def forward(self, embeddings, labels, **others):
            got.append((tuple(embeddings.shape), tuple(labels.shape), labels.is_floating_point()))
            return super().forward(embeddings, labels, **others)

    make(Noted()).contrastive.fit(1, RATE, cbs=seen())
    assert got[0] == ((16, 2, 4), (16, 2), True)
    assert got[-1] == ((16, 4), (16,), False)  # validation


class LikeTensorBoard(Callback):
    "What fastai's callbacks for TensorBoard and W&B read"

    order = 51  # after the Recorder

    def after_create(self):
        self.written = []

    def before_fit(self):
        self.written.append(self.learn.loss_func)

    def after_batch(self):
        self.written.append(float(self.smooth_loss))
        for hyper in self.opt.hypers:
            self.written += [float(value) for value in hyper.values()]

    def after_epoch(self):
        names = self.recorder.metric_names[1:]
        self.written += zip(names, self.recorder.log[1:], strict=False)


CALLBACKS = {
    "early stopping": lambda: EarlyStoppingCallback(patience=1),
    "save model": SaveModelCallback,
    "CSV": CSVLogger,
    "accumulation": lambda: GradientAccumulation(32),
    "clip": GradientClip,
    "plateau": ReduceLROnPlateau,
    "NaN": TerminateOnNaNCallback,
    "board": LikeTensorBoard,
    "knn monitored": lambda: SaveModelCallback(monitor="knn_unweighted_accuracy"),
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("keep", [False, True])
def test_callbacks_of_fastai(name, keep, tmp_path):
    learn = make()
    learn.contrastive.path = tmp_path
    assert all(
        moved(
            learn,
            lambda stage: learn.fit_contrastive(
                2, RATE, keep=tmp_path / "kept" if keep else None, cbs=CALLBACKS[name]()
            ),
        )
    )
    if name == "CSV":
        assert len((tmp_path / "history.csv").read_text().splitlines()) == 3


def test_plateau_reduces_the_rates_of_both_groups():
    learn = make(cbs=Rates())
    with patch("builtins.print"):
        learn.contrastive.fit(
            3, RATE, cbs=ReduceLROnPlateau(comp=np.greater, factor=10, patience=1)
        )
    assert learn.contrastive.rates.torch_lrs == pytest.approx(4 * [RATE / 10])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_clip_and_accumulation_in_both_precisions(precision):
    learn = make(precision=precision)
    learn.contrastive.fit(1, RATE, cbs=[GradientClip(0.1), GradientAccumulation(32)])
    assert np.isfinite(learn.contrastive.recorder.values[-1][0])


# Set-up and leaving


def test_callbacks_of_one_call_are_set_up():
    learn = make(BCL(2, size=4), repeat_labels=True)
    before = learn.contrastive.loss_func.prototypes.detach().clone()
    learn.fit_contrastive(1, RATE, cbs=LearnPrototypes())
    first = learn.contrastive.loss_func.prototypes.detach().clone()
    assert not first.equal(before)
    learn.fit(1, 1, contrastive_lr=RATE, cbs=LearnPrototypes())
    assert not learn.contrastive.loss_func.prototypes.equal(first)
    assert len(learn.contrastive.opt.hypers) == 2


class Ends(Callback):
    def __init__(self, error):
        self.error = error

    def before_batch(self):
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("bad")])
@pytest.mark.parametrize("given_to_fit", [False, True])
def test_deferred_reweighting_restores_the_weights(error, given_to_fit):
    learn = make(classifier_loss=LDAMLoss([60, 4]))
    own, drw = learn.classifier_loss.weight, DeferredReweighting([60, 4], start=0)
    head = learn.new_classifier()
    cbs = [drw, Ends(error)]
    if not given_to_fit:
        head.add_cbs(cbs)
    with pytest.raises((KeyboardInterrupt, ValueError)), head.no_bar():
        learn.fit_classifier(1, cbs=cbs if given_to_fit else None)
    assert learn.classifier_loss.weight is own


# Reading results


def test_predictions_of_the_stages(tmp_path):
    learn = make()
    learn.fit_contrastive(1)
    assert learn.contrastive.get_preds()[0].shape == (32, 4)
    assert learn.contrastive.get_preds(ds_idx=0)[0].shape == (64, 4)
    assert len(learn.contrastive.validate()) == 2
    for method in (learn.contrastive.predict, learn.contrastive.show_results):
        with pytest.raises(TypeError, match="contrastive stage gives embeddings"):
            method(small_data().images[0])
    head = learn.new_classifier()
    with head.no_bar(), head.no_logging():
        learn.fit_classifier(1)
        assert head.get_preds()[0].shape == (32, 2)
        assert len(head.validate()) == 3


@pytest.mark.filterwarnings("ignore")
def test_export_and_save(tmp_path):
    learn = make()
    learn.contrastive.path = tmp_path
    learn.fit_contrastive(1)
    learn.contrastive.export("stage_1.pkl")
    assert (tmp_path / "stage_1.pkl").stat().st_size > 0
    learn.contrastive.save("both", with_opt=True)
    other = make(seed=1)
    other.contrastive.path = tmp_path
    other.contrastive.load("both", with_opt=True, weights_only=False)
    for a, b in zip(
        learn.contrastive.model.parameters(), other.contrastive.model.parameters(), strict=True
    ):
        assert a.equal(b)
    learn.contrastive.fit(1)


# Guards


def test_guards_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not make(guards=False).guards

    class Diverges(nn.Module):
        def forward(self, embeddings, labels):
            return embeddings.sum() / 0

    with pytest.raises(NonFiniteError, match="all 16 images are finite.*StopNonFinite.folder"):
        make(Diverges()).fit_contrastive(1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(NonFiniteError, match="kept in failed"):
        make(Diverges(), guards=StopNonFinite("failed")).fit_contrastive(1)
    learn = make(guards=StopNonFinite("failed"))
    assert learn.new_classifier().stop_non_finite.folder == "failed"
    assert not hasattr(make(guards=False).new_classifier(), "stop_non_finite")


# Errors before stage 1


class Listed(nn.Module):
    def forward(self, x):
        return [x.flatten(1)]


BAD = {
    "channels": (dict(encoder=tiny_encoder(3)), ValueError, r"fails on images of shape \(2, 1, 8"),
    "half": (dict(encoder=tiny_encoder().half()), ValueError, "float32 weights"),
    "meta": (dict(encoder=tiny_encoder().to("meta")), ValueError, "meta device"),
    "list": (dict(encoder=Listed()), TypeError, "got list"),
    "rank": (dict(encoder=nn.Conv2d(1, 2, 3)), ValueError, r"end it with nn.Flatten\(\)"),
    "classifier loss": (dict(classifier_loss="focall"), ValueError, "got 'focall'"),
    "views": (dict(make_views=lambda x: x), ValueError, "make_views must return views of shape"),
    "views axis": (dict(make_views=lambda x: torch.stack([x, x, x])), ValueError, "torch.stack"),
    "views list": (dict(make_views=lambda x: [x, x]), TypeError, "torch.Tensor, got list"),
    "cross-entropy": (dict(loss=nn.CrossEntropyLoss()), TypeError, "is for classifiers"),
    "fastai's": (dict(loss=CrossEntropyLossFlat()), TypeError, "is for classifiers"),
    "class": (dict(loss=AFCL), TypeError, r"such as AFCL\(\), got Asymm"),
    "name": (dict(loss="AFCL"), TypeError, "such as AFCL"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_of_the_constructor(name):
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make(**arguments)


def test_the_constructor_draws_nothing_from_views():
    def drawing(images):
        np.random.rand()
        return two_copies(images) + torch.rand(())

    make(make_views=drawing)
    drawn = torch.rand(()).item(), np.random.rand()
    make(make_views=two_copies)
    assert (torch.rand(()).item(), np.random.rand()) == drawn


@pytest.mark.parametrize(
    "epochs, lr, message",
    [
        (0, 1e-3, "epochs must be an integer >= 1, got 0"),
        (-1, 1e-3, "epochs"),
        (1.5, 1e-3, "epochs"),
        (1, 0, "lr must be > 0"),
        (1, -1e-3, "lr must be > 0"),
        (1, slice(-1e-5, 1e-3), "lr must be > 0"),
        (1, [1e-3, float("nan")], "lr must be > 0"),
    ],
)
def test_errors_of_fit(epochs, lr, message):
    learn = make()
    for train in (
        lambda: learn.fit_contrastive(epochs, lr),
        lambda: learn.fit_classifier(epochs, lr),
        lambda: learn.fit(epochs, 1, contrastive_lr=lr),
        lambda: learn.fit(1, epochs, classifier_lr=lr),
    ):
        with pytest.raises(ValueError, match=message):
            train()
    assert learn.contrastive.opt is None  # stage 1 has not begun


def test_soft_labels_of_the_data_raise():
    dls = small_data().dls(16)
    dls.valid.dataset.tensors = (dls.valid.dataset.tensors[0], torch.rand(96, 2))
    with pytest.raises(TypeError, match=r"integers \(n,\)"):
        TwoStageLearner(dls, tiny_encoder(), CL())


def test_a_loss_of_rows_gets_repeated_labels():
    got = []

    def rows(embeddings, labels):
        got.append((tuple(embeddings.shape), labels[:4].tolist()))
        return CL()(embeddings, labels)

    make(rows, repeat_labels=True).contrastive.fit(1, RATE)
    assert got[0][0] == (32, 4) and got[0][1][0] == got[0][1][1] and got[0][1][2] == got[0][1][3]


def test_nothing_is_fingerprinted_without_need():
    learn = make()
    with patch.object(ImageData, "fingerprint", side_effect=AssertionError):
        learn.fit(1, 1)
        learn.trained_model()
