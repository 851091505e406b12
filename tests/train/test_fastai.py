"""What fastai users do with a Learner works on both stages, or raises an error that states why."""

import importlib
import sys
from types import ModuleType
from unittest.mock import MagicMock, Mock, patch

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.basics import Callback
from fastai.callback.fp16 import MixedPrecision
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
from fastai.data.core import DataLoaders
from fastai.interpret import ClassificationInterpretation
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from torch import nn

from asymcl.data.datasets import ImageData, TensorLoader
from asymcl.losses import AFCL, CL
from asymcl.train.baselines import (
    BCL,
    DeferredReweighting,
    LDAMLoss,
    LogitAdjustedCrossEntropy,
)
from asymcl.train.guards import NonFiniteError, StopNonFinite
from asymcl.train.two_stage import Precision, TwoStageLearner, fused_adam
from asymcl.wrappers import ForPML, FromPML, QueueLoss

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
        **dict(make_views=two_copies, embedding_size=4, classifier_loss="cross_entropy") | kwargs,
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
    learn.contrastive.fine_tune(1, 1e-2, freeze_epochs=0)
    assert len(learn.contrastive.recorder.values) == 1
    learn.contrastive.fine_tune(1, 1e-2)
    encoder, head = (h["lr"] for h in learn.contrastive.opt.hypers)
    assert head / encoder == pytest.approx(100)
    assert all(p.requires_grad for p in learn.encoder.parameters())


@pytest.mark.parametrize(
    "loss",
    [
        lambda: AFCL(temperature=nn.Parameter(torch.tensor(0.1))),
        lambda: QueueLoss(CL(), embedding_size=4, memory_size=16),
    ],
)
def test_lr_find_leaves_the_loss_as_it_was(loss, tmp_path):
    learn = make(loss())
    learn.contrastive.path = tmp_path
    before = {k: v.clone() for k, v in learn.contrastive.loss_func.state_dict().items()}
    learn.contrastive.lr_find(num_it=10, show_plot=False)
    assert all(v.equal(before[k]) for k, v in learn.contrastive.loss_func.state_dict().items())
    learn.contrastive.fit(1, RATE)
    after = learn.contrastive.loss_func.state_dict()
    assert not all(v.equal(before[k]) for k, v in after.items())


# Parameters of the loss


def learnt(value=0.1):
    return AFCL(temperature=nn.Parameter(torch.tensor(value)))


@pytest.mark.parametrize("opt_func", [fused_adam, Adam])
def test_parameters_of_the_loss_are_trained_with_the_last_group(opt_func):
    learn = make(learnt(), opt_func=opt_func)
    learn.contrastive.freeze()
    learn.contrastive.fit(1, slice(1e-4, 1e-2))
    temperature = learn.contrastive.loss_func.temperature
    assert temperature.item() != pytest.approx(0.1)
    groups = [any(p is temperature for p in group) for group in learn.contrastive.opt.param_lists]
    assert groups == [False, True]


def test_parameters_of_a_loss_given_later_are_trained():
    learn = make()
    learn.contrastive.fit(1, RATE)
    learn.contrastive.loss_func = learnt()
    learn.contrastive.fit(1, RATE)
    assert learn.contrastive.loss_func.temperature.item() != pytest.approx(0.1)
    opt = learn.contrastive.opt
    learn.contrastive.loss_func = learnt().requires_grad_(False)
    learn.contrastive.fit(1, RATE)
    assert learn.contrastive.loss_func.temperature.item() == pytest.approx(0.1)
    assert learn.contrastive.opt is opt


def test_a_kept_training_resumes_with_the_parameters_of_the_loss(tmp_path):
    temperatures = []
    for keep in (tmp_path / "whole", tmp_path / "cut", tmp_path / "cut"):
        learn = make(learnt())
        first_try = keep.name == "cut" and not keep.exists()
        try:
            learn.fit_contrastive(
                2, RATE, keep=keep, cbs=Ends(KeyError("cut"), 1) if first_try else None
            )
        except KeyError:
            continue
        temperatures.append(learn.contrastive.loss_func.temperature.item())
    assert temperatures[0] == temperatures[1] != pytest.approx(0.1)


# Callbacks


class Steps(Callback):
    def before_fit(self):
        self.steps = 0

    def after_step(self):
        self.steps += 1


@pytest.mark.parametrize("repeat_labels", [False, True])
@pytest.mark.parametrize("images, steps", [(16, 4), (32, 2), (64, 1)])
def test_gradient_accumulation_counts_images(images, steps, repeat_labels):
    learn = make(cbs=Steps(), repeat_labels=repeat_labels)
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="the learner trains on CUDA")
@pytest.mark.parametrize("capability, warned", [("AVX2", True), ("AVX512", False)])
def test_bf16_warns_on_a_processor_without_instructions_for_it(capability, warned, recwarn):
    with patch("torch.backends.cpu.get_cpu_capability", lambda: capability):
        make(precision="bf16").contrastive.fit(1, RATE)
    slow = [w for w in recwarn if "many times slower than 'fp32'" in str(w.message)]
    assert bool(slow) == warned


@pytest.mark.parametrize("way", ["to_bf16", "precision", "both"])
def test_to_bf16_is_what_precision_does(way):
    learn = make(precision="fp32" if way == "to_bf16" else "bf16")
    if way != "precision":
        learn.contrastive.to_bf16()
    mixed = [cb for cb in learn.contrastive.cbs if isinstance(cb, MixedPrecision)]
    assert [type(cb) for cb in mixed] == [Precision] and learn.precision == "bf16"
    learn.contrastive.to_fp32()
    assert learn.precision == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on CUDA")
def test_to_fp16_on_a_cpu_raises():
    learn = make()
    with pytest.raises(ValueError, match="fp16' needs a CUDA device, got"):
        learn.contrastive.to_fp16()
    assert learn.precision == "fp32"


# Set-up and leaving


def test_callbacks_of_one_call_are_set_up():
    learn, board = make(), LikeTensorBoard()
    learn.fit_contrastive(1, RATE, cbs=board)
    first = len(board.written)
    assert first > 0
    learn.fit(1, 1, contrastive_lr=RATE, cbs=board)
    assert len(board.written) == first


def test_prototypes_are_trained():
    learn = make(BCL(2, size=4), repeat_labels=True)
    prototypes = learn.contrastive.loss_func.prototypes
    for _ in range(2):
        before = prototypes.detach().clone()
        learn.fit_contrastive(1, RATE)
        assert not prototypes.equal(before)
    assert len(learn.contrastive.opt.hypers) == 2


class Ends(Callback):
    def __init__(self, error, epoch=0):
        self.error, self.of_epoch = error, epoch

    def before_batch(self):
        if self.epoch == self.of_epoch:
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


def head_of(learn, **kwargs):
    "The trained head's Learner, quiet"
    head = learn.new_classifier()
    head.remove_cb(head.progress)
    head.logger = lambda *_: None
    learn.fit_classifier(1, **kwargs)
    return head


LOSSES = dict(
    names=["cross_entropy", "focal", "logit_adjusted", "ldam"],
    objects=[LogitAdjustedCrossEntropy([60, 4]), LDAMLoss([60, 4])],
)


@pytest.mark.parametrize("loss", [*LOSSES["names"], *LOSSES["objects"]], ids=str)
def test_fastai_reads_the_head(loss):
    learn = make(classifier_loss=loss)
    head = head_of(learn, cbs=MixUp())
    p, y, decoded, losses = head.get_preds(with_loss=True, with_decoded=True)
    assert p.sum(1).tolist() == pytest.approx(32 * [1.0]) and losses.shape == (32,)
    assert losses.mean().item() == pytest.approx(head.validate()[0], rel=1e-4)
    read = ClassificationInterpretation.from_learner(head)
    right = [[((decoded == j) & (y == i)).sum().item() for j in range(2)] for i in range(2)]
    assert read.confusion_matrix().tolist() == right
    assert list(read.vocab) == ["a", "b"] and len(read.top_losses(3)[0]) == 3
    read.print_classification_report()


def test_predict_of_the_head_names_the_predict_of_images():
    with pytest.raises(TypeError, match="use predict of the TwoStageLearner"):
        head_of(make()).predict(torch.zeros(6))


def test_losses_of_each_image_in_a_wrapper():
    for loss in (QueueLoss(CL(), embedding_size=4, memory_size=16), ForPML(CL())):
        learn = make(loss)
        learn.contrastive.fit(1, RATE)
        assert learn.contrastive.get_preds(with_loss=True)[2].shape == (32,)
        assert loss.reduction == loss.loss.reduction == "mean"
    learn = make(FromPML(lambda rows, labels: rows.square().mean()))
    with pytest.raises(TypeError, match="call get_preds without with_loss"):
        learn.contrastive.get_preds(with_loss=True)


def test_images_without_labels():
    learn = make()
    head_of(learn)
    unlabelled = learn.dls.test_dl(small_data().images[64:96])
    p, labels = learn.probabilities(unlabelled)
    assert p.equal(learn.probabilities("valid")[0]) and labels is None
    assert learn.features(unlabelled)[1] is None
    with pytest.raises(ValueError, match="split must have labelled images"):
        learn.evaluate(unlabelled)


@pytest.mark.parametrize("split", [0, None, "tset", torch.zeros(2)])
def test_errors_of_a_split(split):
    with pytest.raises(ValueError, match="split must be one of train, valid, test or a fastai"):
        make().features(split)


@pytest.mark.parametrize(
    "given, images", [(dict(nrows=2, ncols=4), 8), (dict(unique=True), 1), (dict(max_n=3), 3)]
)
def test_show_batch_takes_what_fastai_takes(given, images):
    plt.close("all")
    small_data().dls(16).show_batch(**given)
    shown = [ax for ax in plt.gcf().axes if ax.images]
    assert len(shown) == images and {ax.get_title() for ax in shown} <= {"a", "b"}
    rows = {ax.get_subplotspec().rowspan.start for ax in shown}
    assert len(rows) == given.get("nrows", 1)


@pytest.fixture
def tensorboard(monkeypatch):
    "fastai's module for TensorBoard, with a SummaryWriter that notes what it is given"
    writer = MagicMock()
    stub = ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = MagicMock(return_value=writer)
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    monkeypatch.delitem(sys.modules, "fastai.callback.tensorboard", raising=False)
    return importlib.import_module("fastai.callback.tensorboard"), writer


def test_tensorboard_shows_images_and_true_classes_in_the_contrastive_stage(tensorboard):
    module, writer = tensorboard
    learn = make()
    learn.fit_contrastive(2, RATE, cbs=module.TensorBoardCallback(n_preds=4))
    figures = [call.args[1] for call in writer.add_figure.call_args_list]
    assert len(figures) == 2 and writer.add_graph.called
    titles = [ax.get_title().split("\n") for ax in figures[0].axes if ax.images]
    assert titles == [["a", ""], ["b", ""], ["a", ""], ["b", ""]]
    scalars = {call.args[0] for call in writer.add_scalar.call_args_list}
    assert {"train_loss", "lr_0", "lr_1", "valid_loss", "knn_unweighted_accuracy"} <= scalars


def test_results_of_a_classifier_are_shown():
    data = small_data()
    model = nn.Sequential(tiny_encoder(), nn.Linear(6, 2))
    learn = Learner(data.dls(16), model, loss_func=CrossEntropyLossFlat())
    with learn.no_bar():
        learn.show_results(max_n=4, shuffle=False)
        predicted = learn.get_preds(with_decoded=True)[2]
    titles = [ax.get_title().split("\n") for ax in plt.gcf().axes if ax.images]
    assert titles == [["ab"[i % 2], "ab"[predicted[i]]] for i in range(4)]
    axes = plt.subplots(1, 2)[1]
    learn.dls.valid.show_results(learn.dls.valid.one_batch(), predicted[:16], ctxs=axes)
    assert [len(ax.images) for ax in axes] == [1, 1]


def test_batches_from_the_cpu_reach_a_gpu_through_pinned_memory():
    data, moved = small_data(), []

    def pin_memory(tensor):
        def to(device, non_blocking):
            moved.append((device.type, non_blocking))
            return tensor

        return Mock(to=to)

    loader = TensorLoader((data.images, data.labels), bs=16, device="cuda", data_device="cpu")
    with patch.object(torch.Tensor, "pin_memory", pin_memory):
        images, labels = next(loader.create_batches(range(16)))
    assert moved == 2 * [("cuda", True)]
    assert images.equal(data.images[:16]) and labels.equal(data.labels[:16])


def test_results_of_the_head_name_another_way():
    with pytest.raises(
        AttributeError, match="call show_results of an ImageLoader, such as dls.valid"
    ):
        head_of(make()).show_results()


# Changes after the constructor


def test_new_data_reach_both_stages():
    learn = make()
    head_of(learn)
    learn.dls = small_data().dls(32)
    assert learn.dls is learn.contrastive.dls and learn.dls.train.bs == 32
    with pytest.raises(RuntimeError, match="no classification head yet"):
        learn.evaluate()
    other = small_data().dls(32)
    other.vocab = ["a", "c"]
    with pytest.raises(ValueError, match=r"dls must have classes \['a', 'b'\].*got .*'c'"):
        learn.dls = other
    learn.contrastive.model = nn.Sequential(tiny_encoder(), nn.Linear(6, 4))
    assert learn.encoder is learn.contrastive.model[0]


OF_BOTH_STAGES = [
    "encoder",
    "make_views",
    "precision",
    "guards",
    "opt_func",
    "classes",
    "contrastive",
]
OF_STAGE_1 = ["cbs", "splitter", "embedding_size", "repeat_labels"]


@pytest.mark.parametrize(
    "name, message",
    [
        *((name, "cannot be set later; make a new") for name in OF_BOTH_STAGES + OF_STAGE_1),
        ("loss", "cannot be set later; set contrastive.loss_func"),
        ("loss_func", "cannot be set later; set contrastive.loss_func"),
        ("metrics", "cannot be set later; set contrastive.metrics"),
        ("lr", "to set, only dls and classifier_loss"),
        ("model", "to set, only dls and classifier_loss"),
    ],
)
def test_what_the_learner_would_ignore_cannot_be_set(name, message):
    with pytest.raises(AttributeError, match=f"{name} {message}"):
        setattr(make(), name, None)


def test_another_loss_of_the_head_leaves_no_old_head():
    learn = make()
    head_of(learn)
    learn.classifier_loss = "focal"
    with pytest.raises(RuntimeError, match="no classification head yet"):
        learn.trained_model()
    assert "Focal" in str(head_of(learn).loss_func)
    with pytest.raises(ValueError, match="got 'focall'"):
        learn.classifier_loss = "focall"
    assert learn.trained_model().about["classifier_loss"] == "focal"


@pytest.mark.parametrize("grouped", [False, True])
def test_a_saved_model_states_whether_several_images_are_of_one_group(grouped, tmp_path):
    data = small_data()
    data.groups[1] = 0 if grouped else 1
    learn = TwoStageLearner(data.dls(16), tiny_encoder(), AFCL())
    learn.fit_classifier()
    learn.save(tmp_path / "model.safetensors")
    card = (tmp_path / "model.md").read_text()
    assert ("every image as independent, so they are too narrow" in card) == grouped


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
    with pytest.raises(NonFiniteError, match="saved in failed"):
        make(Diverges(), guards=StopNonFinite("failed")).fit_contrastive(1)
    learn = make(guards=StopNonFinite("failed"))
    assert learn.new_classifier().stop_non_finite.folder == "failed"
    assert not hasattr(make(guards=False).new_classifier(), "stop_non_finite")


# Errors before stage 1


class Listed(nn.Module):
    def forward(self, x):
        return [x.flatten(1)]


class OfPML(nn.Module):
    __module__ = "pytorch_metric_learning.losses"


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
    "of PML": (dict(loss=OfPML()), TypeError, r"wrap it in asymcl.wrappers.FromPML, or .*repeat"),
    "loss class": (dict(classifier_loss=nn.CrossEntropyLoss), TypeError, r"did you forget \(\)"),
    "contrastive": (dict(classifier_loss=AFCL()), TypeError, "is contrastive; give it as loss"),
    "queue": (
        dict(classifier_loss=QueueLoss(CL(), embedding_size=2, memory_size=4)),
        TypeError,
        "is contrastive",
    ),
    "targets": (
        dict(classifier_loss=BCEWithLogitsLossFlat()),
        ValueError,
        "classifier_loss .*fails",
    ),
    "broadcast": (dict(classifier_loss=nn.MSELoss()), ValueError, "classifier_loss .*fails on log"),
    "flat": (dict(classifier_loss=MSELossFlat()), ValueError, "classifier_loss .*fails on logits"),
    "weights": (
        dict(classifier_loss=LDAMLoss([1, 2, 3])),
        ValueError,
        "classifier_loss .* 2 classes",
    ),
    "no scalar": (
        dict(classifier_loss=nn.CrossEntropyLoss(reduction="none")),
        ValueError,
        r"finite scalar, got \(3,\)",
    ),
    "infinite": (
        dict(classifier_loss=lambda x, y: x.sum() / 0),
        ValueError,
        "finite scalar, got nan",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_of_the_constructor(name):
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make(**arguments)


def test_a_loss_of_pml_for_rows_is_accepted():
    make(OfPML(), repeat_labels=True)


def test_errors_of_the_loaders():
    data = small_data()
    pairs = torch.utils.data.TensorDataset(torch.rand(32, 1, 8, 8), torch.arange(32) % 2)
    of_torch = torch.utils.data.DataLoader(pairs, 8)
    without_vocab = DataLoaders.from_dsets(pairs, pairs, bs=8, num_workers=0, device="cpu")
    unlabelled = DataLoaders(*2 * [data.loader_for(data.images[:32])])
    for dls, error, message in [
        (
            DataLoaders(of_torch, of_torch),
            TypeError,
            "dls must be .*got DataLoaders of DataLoader and DataLoader",
        ),
        (of_torch, TypeError, "dls must be fastai DataLoaders"),
        (DataLoaders(data.loader("train")), TypeError, "got DataLoaders of ImageLoader;"),
        (without_vocab, ValueError, "dls must have a vocab"),
        (unlabelled, ValueError, r"dls must give batches \(images, labels\)"),
    ]:
        with pytest.raises(error, match=message):
            TwoStageLearner(dls, tiny_encoder(), CL(), make_views=two_copies)


def test_the_constructor_draws_nothing_from_views():
    def drawing(images):
        np.random.rand()
        return two_copies(images) + torch.rand(())

    make(make_views=drawing)
    drawn = torch.rand(()).item(), np.random.rand()
    make(make_views=two_copies)
    assert (torch.rand(()).item(), np.random.rand()) == drawn


class OneImagePerClass(Callback):
    def before_batch(self):
        self.learn.yb = (torch.arange(len(self.y)),)


@pytest.mark.parametrize("repeat_labels", [False, True])
def test_two_views_of_one_image_are_a_positive_pair(repeat_labels):
    loss = BCL(2, size=4) if repeat_labels else None
    learn = make(loss, batch_size=2, repeat_labels=repeat_labels)
    learn.contrastive.add_cb(OneImagePerClass())
    learn.fit_contrastive(1)
    assert "positives" not in learn.contrastive.watch_embeddings.warned


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
        lambda: learn.contrastive.fit(epochs, lr),
        lambda: learn.contrastive.fit_one_cycle(epochs, lr),
        lambda: learn.fit_contrastive(epochs, lr),
        lambda: learn.fit_classifier(epochs, lr),
        lambda: learn.fit(epochs, 1, contrastive_lr=lr),
        lambda: learn.fit(1, epochs, classifier_lr=lr),
    ):
        with pytest.raises(ValueError, match=message):
            train()
    assert learn.contrastive.opt is None  # stage 1 has not begun


def test_numbers_of_numpy_and_names_of_fastai():
    learn = make()
    learn.fit_contrastive(np.int64(1), np.float32(RATE))
    for given in (dict(n_epoch=1), dict(lr_max=RATE)):
        with pytest.raises(TypeError, match=f"multiple values for argument '{next(iter(given))}'"):
            learn.fit_contrastive(**given)


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
