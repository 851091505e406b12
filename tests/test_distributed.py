"""Several processes against one: losses and gradients, shared batches, a whole training, the command; and what happens when one is lost."""

import csv
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.multiprocessing as mp
from fastai.losses import FocalLossFlat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, one_hot

from asymcl.distributed import (
    DistributedLoss,
    DistributedMean,
    gather_rows,
    join_ranks,
    leave_ranks,
)
from asymcl.losses import ACL, AFCL, CL, FCL, NTXentLoss, SupMinLoss, SupPrototypeLoss
from asymcl.train.baselines import KCL

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
GUARD = 120  # seconds after which a process is taken to hang


def torchrun(ranks, *arguments, cwd):
    "The finished `torchrun` of a script, or of -m and a module, with its arguments"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        *map(str, arguments),
    ]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=GUARD
    )


def write(folder, name, code):
    "Path of a script"
    (folder / name).write_text(textwrap.dedent(code))
    return folder / name


# Losses: ranks that stay, and do one example after another

LOSSES = {
    "CL": CL(),
    "FCL": FCL(gamma=0.5),
    "ACL": ACL(eta=30.0, averaging="batch"),
    "AFCL": AFCL(eta=10.0, reduction="sum"),
    "batch sum": AFCL(averaging="batch", reduction="sum"),
    "mean over positives": ACL(eta=3.0, reduction="mean_positive"),
    "rare classes": SupMinLoss(rare=(1, 2), eta=10.0),
    "rare mean over positives": SupMinLoss(eta=10.0, reduction="mean_positive"),
    "no labels": NTXentLoss(),
    "prototypes": SupPrototypeLoss(torch.eye(3), eta=3.0),
    "sum with prototypes": SupPrototypeLoss(torch.eye(3), reduction="sum"),
    "learnt temperature": AFCL(temperature=torch.nn.Parameter(torch.tensor(0.3))),
}


def linear():
    "The same model everywhere"
    torch.manual_seed(0)
    return torch.nn.Linear(5, 3)


def value_and_gradients(model, loss, x, y):
    learnt = [
        *model.parameters(),
        *(loss.parameters() if isinstance(loss, torch.nn.Module) else []),
    ]
    for p in learnt:
        p.grad = None
    value = loss(model(x), y)
    value.backward()
    return value.item(), [p.grad.clone() for p in learnt]


def compute(rank, loss, x, y, sizes):
    "Value and gradients of one rank that owns its part of x and y"
    model = torch.nn.parallel.DistributedDataParallel(linear())
    return value_and_gradients(model, loss, x.split(sizes)[rank], y.split(sizes)[rank])


def gather(rank, shapes):
    "What a rank gets from all"
    return gather_rows(torch.full(shapes[rank], float(rank)))


def work(rank, world, port, pipe):
    "Do jobs as they come; an error is an answer too"
    os.environ |= dict(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
    )
    join_ranks(timeout=60)
    while job := pipe.recv():
        try:
            pipe.send(job[0](rank, *job[1:]))
        except Exception as e:
            pipe.send(e)
    leave_ranks()


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request):
    "Number of ranks, and a function that has all of them do a job and gives their answers"
    context, store = (
        mp.get_context("spawn"),
        torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False),
    )
    port, pipes = store.port, [context.Pipe() for _ in range(request.param)]
    del store  # only to find a free port
    processes = [
        context.Process(target=work, args=(r, request.param, port, pipes[r][1]), daemon=True)
        for r in range(request.param)
    ]
    for p in processes:
        p.start()

    def ask(*job):
        for here, _ in pipes:
            here.send(job)
        for here, _ in pipes:
            assert here.poll(GUARD), "a rank does not answer"
        return [here.recv() for here, _ in pipes]

    yield request.param, ask
    for here, _ in pipes:
        here.send(None)
    for p in processes:
        p.join(10)
    for p in processes:
        p.kill()


@pytest.mark.ranks
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_share_of_the_images_gives_the_loss_and_gradients_of_one_process(ranks, data):
    world, ask = ranks
    sizes = data.draw(
        st.lists(st.integers(0, 5), min_size=world, max_size=world).filter(lambda s: sum(s) > 1)
    )
    loss = LOSSES[data.draw(st.sampled_from(sorted(LOSSES)))]
    views = (2,)
    if not isinstance(loss, SupPrototypeLoss | NTXentLoss):
        views = data.draw(st.sampled_from([(), (2,)]))
    labels = torch.tensor(
        data.draw(st.lists(st.integers(0, 2), min_size=sum(sizes), max_size=sum(sizes)))
    )
    if not isinstance(loss, SupMinLoss) and data.draw(st.booleans()):
        labels = 0.7 * one_hot(labels, 3) + 0.1
    x = torch.randn(sum(sizes), *views, 5, generator=torch.Generator().manual_seed(sum(sizes)))
    expected, gradients = value_and_gradients(linear(), loss, x, labels)
    answers = ask(compute, DistributedLoss(loss), x, labels, sizes)
    scale = max(g.norm() for g in gradients)
    for value, own in answers:
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)
        for a, b in zip(own, gradients, strict=True):
            assert (a - b).norm() <= 2e-5 * scale + 1e-6


@pytest.mark.ranks
@pytest.mark.parametrize(
    "name", ["mean over positives", "rare mean over positives", "learnt temperature"]
)
def test_a_rank_with_a_lone_image_and_one_without_any(ranks, name):
    world, ask = ranks
    sizes = [3, 1, 0, 2][:world]
    labels = torch.tensor([0, 0, 1, 2, 1, 3])[: sum(sizes)]
    x = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(0))
    expected, gradients = value_and_gradients(linear(), LOSSES[name], x, labels)
    for value, own in ask(compute, DistributedLoss(LOSSES[name]), x, labels, sizes):
        assert value == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(own, gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "loss",
    [
        cross_entropy,
        torch.nn.CrossEntropyLoss(weight=torch.tensor([0.1, 0.05, 0.6])),
        torch.nn.CrossEntropyLoss(weight=torch.tensor([0.0, 0.05, 0.6]), ignore_index=2),
        FocalLossFlat(weight=torch.tensor([0.1, 0.05, 0.6])),  # a plain mean, in spite of weights
    ],
    ids=["plain", "weighted", "weights of zero", "focal"],
)
def test_mean_losses_weigh_images_and_not_ranks(ranks, loss):
    world, ask = ranks
    sizes = [5, 2, 0, 1][:world]
    x, y = (
        torch.randn(sum(sizes), 5, generator=torch.Generator().manual_seed(1)),
        torch.arange(sum(sizes)) % 3,
    )
    expected, gradients = value_and_gradients(linear(), loss, x, y)
    for value, own in ask(compute, DistributedMean(loss), x, y, sizes):
        assert value == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(own, gradients)


@pytest.mark.ranks
def test_rows_come_in_the_order_of_the_ranks(ranks):
    world, ask = ranks
    for parts in ask(gather, [(r, 2) for r in range(world)]):
        assert [p.tolist() for p in parts] == [[[r, r]] * r for r in range(world)]


@pytest.mark.ranks
def test_what_cannot_work_across_ranks_raises_on_all_of_them(ranks):
    world, ask = ranks
    x, y = torch.randn(2 * world, 5), torch.zeros(2 * world, dtype=torch.long)
    errors = [
        (
            ValueError,
            "the same shape on all ranks",
            ask(gather, [(1, 2 + r) for r in range(world)]),
        ),
        (
            ValueError,
            "mean, sum or mean_positive, got 'none'",
            ask(compute, DistributedLoss(CL(reduction="none")), x, y, [2] * world),
        ),
        (
            TypeError,
            "must be one of asymcl.losses",
            ask(compute, DistributedLoss(torch.nn.CrossEntropyLoss()), x, y, [2] * world),
        ),
        (
            TypeError,
            "SupPrototypeLoss), got KCL",
            ask(compute, DistributedLoss(KCL()), x, y, [2] * world),
        ),
    ]
    for error, message, answers in errors:
        for answer in answers:
            assert isinstance(answer, error) and message in str(answer)


# A whole training, the same script with one process and with two

TRAINING = """
    import json, sys
    import torch
    from fastai.data.core import DataLoaders
    from fastai.optimizer import SGD
    from fastai.torch_core import default_device, num_distrib, rank_distrib, set_seed
    from torch import nn
    from asymcl.data.datasets import SharedLoader, TensorLoader
    from asymcl.data.imbalance import BalancedSampler
    from asymcl.distributed import DistributedLoss, gather_rows, leave_ranks
    from asymcl.losses import AFCL
    from asymcl.train.joint import JointLearner
    from asymcl.train.two_stage import GradientCache, TwoStageLearner, across_ranks

    default_device(False)
    def loaders():
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(53, 1, 8, 8, generator=g), torch.arange(53) % 7 // 5
        dls = DataLoaders(TensorLoader((x[:37], y[:37]), bs=10), TensorLoader((x[37:], y[37:]), bs=5))
        dls.vocab = ["frequent", "rare"]
        return dls

    def train(**kwargs):
        set_seed(0)
        encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
        learn = TwoStageLearner(loaders(), encoder, AFCL(eta=5., averaging="batch"), make_views=lambda x: torch.stack([x, x.flip(3)], 1),
                                embedding_size=8, opt_func=SGD, classifier_loss="cross_entropy", **kwargs)
        stage_1 = learn.contrastive
        with across_ranks(stage_1), stage_1.no_bar(), stage_1.no_logging(): learn.fit_contrastive(2, 0.05)
        clean = "forward" not in vars(stage_1.model) and not isinstance(stage_1.loss_func, DistributedLoss)
        set_seed(1)
        head = learn.new_classifier()
        with head.no_bar(), head.no_logging(): learn.fit_classifier(2)
        return dict(curve=[list(v) for v in stage_1.recorder.values], names=list(stage_1.model.state_dict()), clean=clean,
                    weights=[p.flatten().tolist() for p in stage_1.model.parameters()], metrics=learn.evaluate("valid"))

    def jointly(**kwargs):
        set_seed(0)
        encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
        learn = JointLearner(loaders(), encoder, AFCL(eta=5.), make_views=lambda x: torch.stack([x, x.flip(3)], 1),
                             embedding_size=8, opt_func=SGD, **kwargs)
        with across_ranks(learn.joint), learn.joint.no_bar(), learn.joint.no_logging(): learn.fit(2, 0.01)
        return dict(curve=[list(v) for v in learn.joint.recorder.values], metrics=learn.evaluate("valid"),
                    weights=[p.flatten().tolist() for p in learn.joint.model.parameters()])

    def epochs(**kwargs):
        "Two epochs of a shuffling loader, batches put together again; only the order of rank 0 begins with seed 0"
        loader = TensorLoader(torch.arange(23), bs=5, shuffle=True, **kwargs)
        torch.manual_seed(rank_distrib())
        if num_distrib() > 1: loader = SharedLoader(loader)
        return [[torch.cat(gather_rows(b)).tolist() for b, in loader] for _ in range(2)]

    results = dict(whole=train(), cached=train(cbs=GradientCache(3)), half=train(cbs=GradientCache(3), precision="bf16"), batches=epochs(),
                   joint=jointly(),
                   sampled=epochs(drop_last=True, sampler=BalancedSampler([0] * 20 + [1] * 3, 5)))
    if rank_distrib() == 0: json.dump(results, open(sys.argv[1], "w"))
    leave_ranks()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Results of the training by one process and by two"
    folder = tmp_path_factory.mktemp("training")
    script = write(folder, "train.py", TRAINING)
    alone = subprocess.run(
        [sys.executable, script, "1.json"],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=GUARD,
    )
    both = torchrun(2, script, "2.json", cwd=folder)
    assert alone.returncode == both.returncode == 0, alone.stderr + both.stderr
    return [json.loads((folder / f"{n}.json").read_text()) for n in (1, 2)]


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["whole", "cached", "half", "joint"])
def test_training_on_two_ranks_is_that_of_one_process(trained, kind):
    alone, both = (results[kind] for results in trained)
    tolerance = 1e-4 if kind != "half" else 3e-2
    for a, b in zip(both["weights"], alone["weights"], strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    for a, b in zip(both["curve"], alone["curve"], strict=True):
        assert a == pytest.approx(b, rel=tolerance)
    if kind != "half":
        assert both["metrics"] == pytest.approx(alone["metrics"], abs=1e-4)


@pytest.mark.ranks
def test_training_leaves_the_learner_as_it_was(trained):
    for results in trained:
        kinds = [results[kind] for kind in ("whole", "cached", "half")]
        assert all(r["clean"] for r in kinds) and len({tuple(r["names"]) for r in kinds}) == 1
    assert trained[0]["whole"]["names"] == trained[1]["whole"]["names"]


@pytest.mark.ranks
def test_gradient_cache_changes_nothing_but_memory(trained):
    for results in trained:
        for a, b in zip(results["cached"]["weights"], results["whole"]["weights"], strict=True):
            assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.ranks
def test_shared_batches_are_those_of_one_loader(trained):
    alone, both = (results["batches"] for results in trained)
    for epochs in (alone, both):
        assert [[len(b) for b in batches] for batches in epochs] == [[5, 5, 5, 5, 3]] * 2
        assert (
            all(sorted(sum(batches, [])) == list(range(23)) for batches in epochs)
            and epochs[0] != epochs[1]
        )
    assert both[0] == alone[0]


@pytest.mark.ranks
def test_sampled_batches_have_every_class_on_two_ranks_as_on_one(trained):
    alone, both = (results["sampled"] for results in trained)
    for epochs in (alone, both):
        for batch in sum(epochs, []):
            assert len(batch) == 5 and len({i for i in batch if i >= 20}) >= 2
    assert both[0] == alone[0] and len(both[0]) == 4


# A rank that is lost

LOST = """
    import os, sys, time
    import torch
    import torch.distributed as dist
    from asymcl.distributed import DistributedLoss, join_ranks
    from asymcl.losses import CL
    join_ranks(timeout=3)
    for step in range(10):
        if step == 3 and dist.get_rank() == 1: os._exit(7) if sys.argv[1] == "dies" else time.sleep(10**6)
        DistributedLoss(CL())(torch.randn(4, 3), torch.arange(4))
"""


@pytest.mark.ranks
@pytest.mark.parametrize("how", ["dies", "falls silent"])
def test_a_lost_rank_ends_the_run_with_an_error(how, tmp_path):
    done = torchrun(2, write(tmp_path, "lost.py", LOST), how, cwd=tmp_path)
    assert done.returncode != 0
    assert ("exitcode  : 7" if how == "dies" else "imed out") in done.stderr


# The command

QUICK = [
    "--train-total",
    "200",
    "--epochs",
    "1",
    "--classifier-epochs",
    "2",
    "--batch-size",
    "50",
    "--device",
    "cpu",
    "--seeds",
    "1",
    "--classifier-loss",
    "cross_entropy",
]


@pytest.mark.ranks
def test_command_on_two_ranks_writes_the_usual_report_once(tmp_path):
    done = torchrun(
        2, "-m", "asymcl.cli.compare", *QUICK, "--methods", "CE,AFCL", "--name", "two", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1 and done.stdout.count("\nmethod ") == 1
    folder = tmp_path / "runs" / "two"
    assert [p.name for p in folder.parent.iterdir()] == ["two"]
    assert {"results.csv", "results.json", "report.html", "curves.png", "confusion.png"} <= {
        p.name for p in folder.iterdir()
    }
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(r["method"], r["seed"]) for r in rows] == [("CE", "0"), ("AFCL", "0")]
    assert all(
        0 <= float(r[k]) <= 1
        for r in rows
        for k in ("weighted_accuracy", "unweighted_accuracy", "roc_auc")
    )
    content = json.loads((folder / "results.json").read_text())
    assert content["settings"]["batch_size"] == 50
    assert content["data"][0]["counts"]["test"] == [1000, 1000]


FAILING = """
    import sys
    from fastai.torch_core import rank_distrib
    from asymcl.cli.compare import compare_command
    from asymcl.compare.experiment import Comparison
    real = Comparison.run_jobs
    def run_jobs(*arguments):
        runs = real(*arguments)
        yield next(runs)
        if rank_distrib() == 1: raise RuntimeError("device lost")
        yield from runs
    Comparison.run_jobs = run_jobs
    sys.exit(compare_command(sys.argv[1:]))
"""


@pytest.mark.ranks
def test_command_that_loses_a_rank_reports_the_runs_that_were_done(tmp_path):
    done = torchrun(
        2,
        write(tmp_path, "failing.py", FAILING),
        *QUICK,
        "--methods",
        "CL,ACL",
        "--name",
        "lost",
        cwd=tmp_path,
    )
    assert done.returncode != 0 and "asymcl-compare, process 1: error: device lost" in done.stderr
    assert (tmp_path / "runs" / "lost" / "report.html").exists()
    rows = list(csv.DictReader((tmp_path / "runs" / "lost" / "results.csv").open()))
    assert [r["method"] for r in rows] == ["CL"]


def test_only_the_first_process_reports_a_bad_option(monkeypatch, capsys):
    from asymcl.cli.compare import (
        compare_command,  # here, for ranks import this file and have no use for it
    )

    messages = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stopped:
            compare_command(["--proportions", "90:0"])
        messages.append(
            (stopped.value.code, capsys.readouterr().err.count("asymcl-compare: error: "))
        )
    assert messages == [(2, 1), (2, 0)]
