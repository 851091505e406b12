"""`asymcl-predict` as a process: killed and resumed, file names that are not UTF-8, custom encoders, and how fast it answers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from asymcl.cli.predict import predict_command
from asymcl.decisions import decide
from asymcl.infer.model import Prior, TrainedModel, fit_temperature

SMALL = dict(image_shape=(1, 8, 8), mean=torch.tensor([0.5]), std=torch.tensor([0.25]))
OWN = """
import os, time
from torch import nn

class Means(nn.Module):
    "Means of the four quarters of an image; with HANG set, its second batch never ends"

    def __init__(self):
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(4))
        self.batches = 0

    def forward(self, x):
        self.batches += len(x) > 1
        while "HANG" in os.environ and self.batches > 1:
            time.sleep(1)
        return self.pool(x)

def encoder():
    return Means()

def other():
    return nn.Linear(2, 2)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a model that has a custom encoder, and 300 tiny images, of which three are damaged"
    folder = tmp_path_factory.mktemp("predict")
    (folder / "own.py").write_text(OWN)
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(300):
        pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i:03}.png")
    for i in (5, 150, 299):
        (folder / f"images/{i:03}.png").write_bytes(b"damaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        from own import encoder

        torch.manual_seed(0)
        logits, labels = torch.randn(200, 2), torch.arange(200) % 2
        logits[:, 1] += labels
        TrainedModel(
            encoder=encoder(), head=torch.nn.Linear(4, 2), classes=("a", "b"), **SMALL,
            valid_logits=logits, valid_labels=labels, temperature=fit_temperature(logits, labels),
            about={"train_counts": [90, 10]},
        ).save("model.safetensors")  # fmt: skip
        yield folder


def run(capsys, *arguments):
    "Exit code and errors of the command, in this process"
    try:
        code = predict_command([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err


COMMAND = ["model.safetensors", "images", "--encoder", "own:encoder", "--recall", "0.9"]


def outputs(name):
    return ["--out", f"{name}.csv", "--embeddings", f"{name}.npy"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_command_keeps_its_rows_and_resumes(place, capsys):
    assert run(capsys, *COMMAND, *outputs("whole"))[0] == 1
    command = [sys.executable, "-m", "asymcl.cli.predict", *COMMAND, *outputs("killed")]
    process = subprocess.Popen(command, env=os.environ | {"HANG": "1"})
    part, features = Path("killed.csv.part"), Path("killed.npy.part")
    end = time.monotonic() + 200
    while not (part.exists() and part.read_bytes().count(b"\n") > 1):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    whole = Path("whole.csv").read_bytes()
    assert whole.startswith(part.read_bytes()) and len(pd.read_csv(part)) == 128
    assert not Path("killed.csv").exists() and not Path("killed.npy").exists()

    lines = whole.splitlines(keepends=True)
    with open(part, "ab") as file:  # a torn chunk, as a kill between two writes leaves it
        file.write(b"".join(lines[129:140])[:-3])
    with open(features, "ab") as file:
        file.write(b"torn")
    code, err = run(capsys, *COMMAND, *outputs("killed"))
    assert code == 1 and "3 of 300 files could not be read" in err and "images/005.png" in err
    for ending in ("csv", "npy"):
        assert Path(f"killed.{ending}").read_bytes() == Path(f"whole.{ending}").read_bytes()
    found = np.load("killed.npy", allow_pickle=False)
    assert found.shape == (300, 4) and np.isnan(found).any(1).nonzero()[0].tolist() == [5, 150, 299]
    assert not list(Path().glob("*.part*"))


def test_resuming_reads_only_what_is_missing(place, capsys, monkeypatch):
    original = TrainedModel.predict_files

    def stop(model, files, *args):
        for i, answer in enumerate(original(model, files, *args)):
            if i == 200:
                raise KeyboardInterrupt
            yield answer

    with monkeypatch.context() as patch:
        patch.setattr(TrainedModel, "predict_files", stop)
        code, err = run(capsys, *COMMAND, "--out", "again.csv")
    assert code == 130 and "stopped; the rows so far are in again.csv.part" in err
    seen = []
    monkeypatch.setattr(
        TrainedModel,
        "predict_files",
        lambda m, files, *a: seen.append(len(files)) or original(m, files, *a),
    )
    assert len(pd.read_csv("again.csv.part")) == 128
    code, err = run(capsys, *COMMAND, "--out", "again.csv")
    assert code == 1 and seen[-1] == 172 and len(pd.read_csv("again.csv")) == 300
    code, err = run(capsys, *COMMAND, "--out", "again.csv")
    assert code == 2 and "again.csv exists already" in err and err.count("\n") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(place, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    code, err = run(capsys, *COMMAND, "--out", f"shown-{terminal}.csv")
    assert code == 1 and "3 of 300 files could not be read" in err
    if not terminal:
        assert "\r" not in err and "of 300 files could" in err and "#" not in err
        return
    shown = [(12, 128), (25, 256), (30, 300)]
    text = "".join(f"\r[{'#' * n:<30}] {done} of 300 files" for n, done in shown)
    assert f"{text}\nasymcl-predict: 3 of 300" in err


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
@pytest.mark.parametrize("out", [["--out", "names.csv"], []])
def test_a_file_name_that_is_not_utf_8_leaves_a_csv_that_can_be_read(place, out):
    folder = os.fsencode(place) + b"/gr\xf6\xdfe" + (b"1" if out else b"2")
    os.mkdir(folder)
    Image.new("L", (8, 8), 99).save(os.fsdecode(folder + b"/\xff.png"))
    Path(os.fsdecode(folder + b"/\xfe.png")).write_bytes(b"damaged")
    command = [
        sys.executable,
        "-m",
        "asymcl.cli.predict",
        "model.safetensors",
        folder,
        "--encoder",
        "own:encoder",
        *out,
    ]
    done = subprocess.run(command, capture_output=True)
    content = Path("names.csv").read_bytes() if out else done.stdout
    assert done.returncode == 1
    rows = content.decode().splitlines()
    assert rows[1].startswith(place.as_posix() + r"/gr\xf6\xdfe") and r"\xfe.png" in rows[1]
    assert (
        len(rows) == 3
        and r"\xff.png" in rows[2]
        and r"\xfe.png: cannot be decoded" in done.stderr.decode()
    )


@pytest.mark.parametrize(
    "encoder, message",
    [
        ([], "it has a custom encoder"),
        ([], "asymcl-predict: --encoder module:function"),
        (["--encoder", "own"], "--encoder must be module:function, got 'own'"),
        (
            ["--encoder", "nowhere:encoder"],
            "--encoder nowhere:encoder cannot be called (ModuleNotFoundError",
        ),
        (["--encoder", "own:nothing"], "has no attribute 'nothing'"),
        (["--encoder", "own:OWN"], "has no attribute 'OWN'"),
        (["--encoder", "own:time"], "'module' object is not callable"),
        (["--encoder", "builtins:dict"], "must return a torch.nn.Module, got dict"),
        (
            ["--encoder", "own:other"],
            "not a model that can be used (RuntimeError: Error(s) in loading state_dict for ModuleDict",
        ),
    ],
)
def test_wrong_encoders_are_one_line(place, capsys, encoder, message):
    code, err = run(capsys, "model.safetensors", "images", *encoder)
    assert code == 2 and err.startswith("asymcl-predict: error: ")
    assert message in err and err.count("\n") == 1


def test_the_line_states_what_is_promised_and_too_few_images_are_an_error(place, capsys):
    code, err = run(capsys, *COMMAND)
    assert code == 1 and "b if most probable, or from a probability of" in err
    assert "for a recall of 0.9 with confidence 0.95; on the validation images recall" in err
    assert "not calibrated" not in err
    code, err = run(capsys, *COMMAND[:-1], "0.99")
    assert code == 2 and err.count("\n") == 1
    assert "error: --recall 0.99 with confidence 0.95 needs at least 299 validation" in err


def test_probabilities_without_an_estimate_are_not_called_calibrated(place, capsys):
    from asymcl.models import small_encoder

    logits, labels = torch.eye(2).repeat(4, 1) * 30, torch.arange(8) % 2
    temperature = fit_temperature(logits, labels)
    assert abs(30 / temperature - np.log(9)) < 1e-3  # probabilities of 1 - 1 / (8 + 2)
    TrainedModel(
        encoder=small_encoder(), head=torch.nn.Linear(256, 2), classes=("a", "b"), **SMALL,
        valid_logits=logits, valid_labels=labels, temperature=temperature,
    ).save("separable.safetensors")  # fmt: skip
    code, err = run(capsys, "separable.safetensors", "images/000.png")
    assert code == 0 and err.count("\n") == 1
    assert "the probabilities are not calibrated: the model makes no error on its 8" in err
    code, err = run(
        capsys, "separable.safetensors", "images/000.png", "--recall", "0.95", "--rare", "b"
    )
    assert code == 2 and "needs at least 59 validation images of the class, got 4" in err
    code, err = run(capsys, "separable.safetensors", "images/000.png", "--recall", "0.8")
    assert code == 2 and "--rare is needed" in err
    arguments = ["--recall", "0.8", "--confidence", "none", "--rare", "b"]
    code, err = run(capsys, "separable.safetensors", "images/000.png", *arguments)
    assert (
        code == 0
        and "for a recall of 0.8 on average; on the validation images recall 1.000 of 4" in err
    )


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--recall", "0.8"], "--recall needs validation images, and this model was saved without"),
        (["--precision", "0.8"], "--precision needs validation images"),
        (["--cost-ratio", "5"], "--cost-ratio needs validation images"),
        (["--prevalence", "0.1"], "--prevalence needs validation images"),
        (["--coverage", "0.9"], "--coverage needs validation images"),
        (
            ["--coverage", "0.9", "--recall", "0.8"],
            "--recall: not allowed with argument --coverage",
        ),
        (["--cost-ratio", "-3"], "--cost-ratio must be a finite number > 0, got -3"),
        (["--prevalence", "1.5"], "--prevalence must be between 0 and 1, got 1.5"),
    ],
)
def test_decisions_need_validation_images_and_values_in_range(place, capsys, options, problem):
    from asymcl.models import small_encoder

    TrainedModel(
        encoder=small_encoder(), head=torch.nn.Linear(256, 2), classes=("a", "b"), **SMALL,
        about={"train_counts": [90, 10]},
    ).save("plain.safetensors")  # fmt: skip
    code, err = run(capsys, "plain.safetensors", "images/000.png", *options)
    assert code == 2 and problem in err and err.count("\n") == 1


def test_a_prior_without_validation_images_names_the_class_shares_only(place, capsys):
    from asymcl.models import small_encoder

    TrainedModel(
        encoder=small_encoder(), head=torch.nn.Linear(256, 2), classes=("a", "b"), **SMALL,
        prior=Prior((0.9, 0.1), (1.0, 0.2)),
    ).save("stripped.safetensors")  # fmt: skip
    code, err = run(capsys, "stripped.safetensors", "images/000.png")
    assert code == 0 and "the probabilities are for class shares of a 0.9, b 0.1\n" in err


def test_rows_at_a_prevalence_and_for_an_expert(place, capsys):
    images = [f"images/{i:03}.png" for i in range(100, 140)]
    code, err = run(
        capsys, COMMAND[0], *images, *COMMAND[2:4], "--prevalence", "0.02", "--cost-ratio", "30",
        "--out", "costs.csv",
    )  # fmt: skip
    assert code == 0 and "class shares of a 0.98, b 0.02 (validation images: a 0.5, b 0.5)" in err
    assert "b from a probability of" in err and "a missed one costing 30 false alarms" in err
    assert run(capsys, COMMAND[0], *images, *COMMAND[2:4], "--out", "plain.csv")[0] == 0
    code, err = run(
        capsys, COMMAND[0], *images, *COMMAND[2:4], "--coverage", "0.6", "--out", "sets.csv"
    )
    assert code == 0 and "an expert is asked for" in err
    costs, plain, sets = (pd.read_csv(f"{name}.csv") for name in ("costs", "plain", "sets"))
    odds = [table["probability of b"] / table["probability of a"] for table in (costs, plain)]
    ratio = (odds[0] / odds[1]).to_numpy()
    assert ratio == pytest.approx(ratio[0], rel=1e-3) and ratio[0] < 0.1
    single = sets["prediction set"].isin(["a", "b"])
    assert (sets["class"][single] == sets["prediction set"][single]).all()
    assert (sets["class"][~single] == "ask an expert").all()
    assert sets["probability"][~single].isna().all() and 0 < single.mean() < 1


def model_of_scores(random, positives):
    "A model of two classes whose validation split has some rare images, and such a score for new images"

    def logits(n, rare):
        x = torch.from_numpy(random.normal(3 * rare - 1.5, 1.5, (n, 1)))
        return torch.cat([torch.zeros(n, 1, dtype=x.dtype), x], 1)

    labels = torch.tensor([0] * 100 + [1] * positives)
    valid = torch.cat([logits(100, 0), logits(positives, 1)])
    temperature = fit_temperature(valid, labels)
    model = TrainedModel(
        encoder=None, head=None, classes=("frequent", "rare"), image_shape=(1, 8, 8),
        temperature=temperature, valid_logits=valid, valid_labels=labels,
    )  # fmt: skip
    return model, (logits(4000, 1) / temperature).softmax(1)


@pytest.mark.parametrize("positives", [1, 2, 3, 4, 20, 60, 200])
def test_a_required_recall_never_costs_recall_and_keeps_its_confidence(positives):
    random, confidence, reached = np.random.default_rng(positives), 0.9, []
    recall = min(0.9, 0.99 * (1 - confidence) ** (1 / positives))
    for _ in range(200):
        model, new = model_of_scores(random, positives)
        threshold = model.threshold("rare", recall, confidence)
        found, usual = decide(new, threshold) == 1, decide(new) == 1
        assert (found | ~usual).all()  # what was rare stays rare
        reached.append(found.mean() >= recall)
        p = (model.valid_logits / model.temperature).softmax(1)
        of_valid = decide(p, threshold)[model.valid_labels == 1] == 1
        assert threshold.recall == pytest.approx(of_valid.mean())
        with pytest.raises(ValueError, match="at least .* validation images of the class, got"):
            model.threshold("rare", 0.999, confidence)
    low = confidence - 2.6 * (confidence * (1 - confidence) / 200) ** 0.5
    assert np.mean(reached) >= low
