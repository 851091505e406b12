"""The installed commands, as a user types them, in processes of their own."""

import csv
import html
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from asymcl.core.settings import weights_path

SCRIPTS = Path(sysconfig.get_path("scripts"))
METHODS = ["frozen", "CE", "CL", "AFCL"]  # of the first command
HEADS = ["cross_entropy", "logit_adjusted", "logistic"]
QUICK = ["--train-total", "200", "--epochs", "1", "--classifier-epochs", "2", "--batch-size", "50"]


def run(*arguments, cwd):
    "Run asymcl-compare and return the finished process"
    return subprocess.run(
        [SCRIPTS / "asymcl-compare", *arguments], cwd=cwd, capture_output=True, text=True
    )


@pytest.fixture(scope="module", params=[["--seeds", "1"], pytest.param([], marks=pytest.mark.slow)])
def first_run(request, tmp_path_factory):
    "The first command with its own methods on a reduced budget, and with its own seeds where that is slow"
    folder = tmp_path_factory.mktemp("first")
    return run(*QUICK, *request.param, cwd=folder), folder


def test_first_command_prints_a_table(first_run):
    done, _ = first_run
    assert done.returncode == 0, done.stderr
    table = [
        line.split()
        for line in done.stdout.splitlines()
        if re.match(r"(method|frozen|CE|CL|AFCL) ", line)
    ]
    assert [row[:2] for row in table[1:]] == list(map(list, product(METHODS, HEADS)))
    for name in ("accuracy", "balanced", "ROC", "recall", "seconds"):
        assert name in table[0]


def test_first_command_prints_the_answer_of_the_report(first_run):
    done, where = first_run
    page = next((where / "runs").rglob("report.html")).read_text()
    printed = " ".join(done.stdout.split())
    lines = re.findall("<li><strong>(.*?):</strong> (.*?)</li>", page)
    assert [name for name, _ in lines] == [
        "Change first",
        "Differs",
        "Not distinguished",
        "Try next",
        "Not shown",
    ]
    assert all(f"{name}: {html.unescape(text)}" in printed for name, text in lines)


def test_first_command_leaves_a_folder_of_results(first_run):
    done, where = first_run
    (folder,) = (where / "runs").iterdir()
    names = {p.name for p in folder.iterdir()}
    assert {
        "results.csv",
        "results.json",
        "report.html",
        "class_counts.png",
        "curves.png",
        "embedding_maps.png",
        "confusion.png",
        "label_audit.csv",
        "label_audit.png",
        "near_duplicates.csv",
        "near_duplicates.png",
        "comparison.png",
        "mistakes.html",
    } <= names
    assert str(folder.relative_to(where) / "report.html") in done.stdout
    content = json.loads((folder / "results.json").read_text())
    seeds = content["settings"]["seeds"]
    assert seeds in ([0], [0, 1])
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(r["loss"], r["head"], int(r["seed"])) for r in rows] == [
        (method, head, seed) for seed in seeds for method in METHODS for head in HEADS
    ]
    assert all(
        0 <= float(r[k]) <= 1
        for r in rows
        for k in ("weighted_accuracy", "unweighted_accuracy", "roc_auc")
    )
    assert content["settings"]["train_total"] == 200
    assert [row["seed"] for row in content["data"]] == seeds and content["versions"]["torch"]
    assert all(row["counts"]["train"] == [180, 20] for row in content["data"])


def test_splits_and_predictions_can_be_checked_image_by_image(first_run):
    _, where = first_run
    (folder,) = (where / "runs").iterdir()
    content = json.loads((folder / "results.json").read_text())
    for row in content["data"]:
        table = list(csv.DictReader((folder / "records" / row["splits"]).open()))
        counts = Counter((line["split"], line["class"]) for line in table)
        assert len({line["image"] for line in table}) == len(table)
        assert [counts["train", c] for c in content["classes"]] == row["counts"]["train"]
    for row in csv.DictReader((folder / "results.csv").open()):
        assert row["status"] == "done"
        path = folder / "records" / f"{row['record']}.predictions.csv"
        right = Counter()
        lines = [
            line
            for line in csv.DictReader(path.open())
            if (line["split"], line["head"]) == ("test", row["head"])
        ]
        for line in lines:
            p = {c: float(line[f"probability of {c}"]) for c in content["classes"]}
            right[line["class"], max(p, key=p.get) == line["class"]] += 1
        for c in content["classes"]:
            recall = right[c, True] / (right[c, True] + right[c, False])
            assert abs(recall - float(row[f"recall_{c}"])) < 1e-6


def test_advice_comes_before_the_training_and_in_the_report(first_run):
    done, where = first_run
    advice = "every class has two images or more in 95% of batches of 50"
    assert 0 <= done.stdout.index(advice) < done.stdout.index("\nmethod ")
    assert advice in next((where / "runs").rglob("report.html")).read_text()


def test_report_is_self_contained(first_run):
    _, where = first_run
    page = next((where / "runs").rglob("report.html")).read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    sources.remove("mistakes.html")  # a link to the page beside it
    assert sources and all(s.startswith("data:image/png;base64,") for s in sources)
    assert "@import" not in page and "url(" not in page
    assert all(f">{method} {head}<" in page for method in METHODS for head in HEADS)


@pytest.mark.slow
def test_a_comparison_from_weights_begins_with_frozen(tmp_path, monkeypatch):
    "It resumes, and a weights file with other content is not the same comparison"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tmp_path / "eight.safetensors"
    weights.write_bytes(weights_path("fashion_mnist_eight").read_bytes())
    options = [*QUICK, "--weights", str(weights), "--seeds", "0,", "--name", "tuned"]
    options += ["--classifier-loss", "cross_entropy,logistic"]
    done = run(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tuned"
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["loss"] for row in rows[::2]] == METHODS
    assert [row["regime"] for row in rows] == ["frozen"] * 2 + ["fine_tuned"] * 6
    assert "frozen: no training of the encoder" in (folder / "report.html").read_text()
    records = {path: path.stat().st_mtime_ns for path in (folder / "records").glob("*.json")}
    rates = {json.loads(path.read_text())["settings"]["lr"] for path in records}
    assert rates == {None, 1e-3}
    assert run(*options, cwd=tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in records} == records
    weights.write_bytes(weights.read_bytes() + b" ")
    changed = run(*options, cwd=tmp_path)
    assert changed.returncode == 2 and changed.stderr.count("\n") == 1
    assert "weights was" in changed.stderr


@pytest.mark.slow
def test_same_seed_gives_the_same_numbers_in_two_processes(first_run, tmp_path):
    _, where = first_run
    again = run(*QUICK, "--methods", "AFCL", "--seeds", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    ones = list(csv.DictReader(next(tmp_path.rglob("results.csv")).open()))
    firsts = csv.DictReader(next(where.rglob("results.csv")).open())
    firsts = [row for row in firsts if (row["loss"], row["seed"]) == ("AFCL", "0")]
    for row in ones + firsts:
        del row["seconds"]
    assert ones == firsts and len(ones) == len(HEADS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, least",
    [
        ("asymcl-compare", 20),
        ("asymcl-tune", 20),
        ("asymcl-pretrain", 20),
        ("asymcl-predict", 6),
        ("asymcl-demo", 6),
    ],
)
def test_help_explains_every_option(name, least, tmp_path):
    done = subprocess.run([SCRIPTS / name, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    entries = re.split(r"\n  (?=-)", done.stdout.split("options:")[1])[1:]
    assert len(entries) > least
    for entry in entries:
        assert len(entry.split(maxsplit=2)) == 3, f"no explanation: {entry}"


LIGHT = """
import sys
from asymcl.cli.{module} import {name}_command
for arguments in {calls}:
    try:
        {name}_command(arguments)
    except SystemExit:
        pass
print(sorted({{"torch", "fastai", "matplotlib", "gradio"}} & set(sys.modules)))
"""
PRETRAIN = [["--out", "a.safetensors", *bad] for bad in (["--lr", "0"], ["--data", "csv"])]
PRETRAIN += [["--out", "a.pt"], ["--out", "none/a.safetensors"], []]
BAD = [["--eta", "x"], ["--eta", "-1"], ["--name", "a/b"], ["--encoder", "vgg"], ["--data", "csv"]]


@pytest.mark.parametrize(
    "module, name, calls",
    [
        ("compare", "compare", [["--help"], *BAD]),
        ("compare", "tune", [["--help"], *BAD, ["--trials", "0"], ["--search-seeds", "1,"]]),
        ("pretrain", "pretrain", [["--help"], *PRETRAIN]),
        ("predict", "predict", [["--help"], ["model"], ["model", "image", "--recall", "2"]]),
        ("demo", "demo", [["--help"], [], ["model", "--recall", "2"], ["model", "--port", "1"]]),
    ],
)
def test_help_and_bad_options_import_neither_torch_nor_fastai(module, name, calls, tmp_path):
    code = LIGHT.format(module=module, name=name, calls=calls)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("error: ") == len(calls) - 1, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_bad_option_exits_2_with_one_line(tmp_path):
    "All of them are tried in nbs/api/cli/compare.ipynb, without a process for each"
    done = run("--proportions", "90:0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("asymcl-compare: error: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not any((tmp_path / "runs").glob("*"))


MODEL = """
from PIL import Image
from asymcl.data.datasets import fashion_mnist
from asymcl.losses import CL
from asymcl.models import small_encoder
from asymcl.train.two_stage import TwoStageLearner
from pathlib import Path

data = fashion_mnist(train_total=200)
learn = TwoStageLearner(data.dls(50), small_encoder(), CL())
learn.new_classifier()
learn.save("model.safetensors")
Path("images").mkdir()
for i, image in enumerate(data.images[:100]): Image.fromarray(image[0].numpy()).save(f"images/{i}.png")
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    "A folder with a model, and a hundred images to ask it about"
    folder = tmp_path_factory.mktemp("model")
    subprocess.run([sys.executable, "-W", "ignore", "-c", MODEL], cwd=folder, check=True)
    return folder


def heed_signals():
    "A process started by another that ignores signals, as nohup and a shell's background do, would ignore them too"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.kills
@pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="this system has no signals that a process can answer"
)
@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_predict_answers_a_signal_with_a_line_and_keeps_its_rows(model_folder, name, code):
    rows, part = f"{name}.csv", model_folder / f"{name}.csv.part"
    command = [SCRIPTS / "asymcl-predict", "model.safetensors", *["images"] * 200, "--out", rows]
    command += ["--embeddings", f"{name}.npy"]
    process = subprocess.Popen(
        command,
        cwd=model_folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
        start_new_session=True,
    )
    while not (part.exists() and part.read_bytes().count(b"\n") > 1):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, getattr(signal, name))  # with its workers, as a terminal does
    printed = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == code
    assert printed[-1].endswith(
        f"stopped; the rows so far are in {rows}.part, and the same command resumes"
    )
    assert len(printed) == 1 or "not calibrated" in printed[0] and len(printed) == 2
    done = len(list(csv.DictReader(part.open())))
    assert 0 < done < 20_000 and not (model_folder / rows).exists()
    assert (model_folder / f"{name}.npy.part").stat().st_size >= 128 + done * 256 * 4


def test_a_comparison_stopped_while_it_audits_labels_keeps_its_results(tmp_path, monkeypatch):
    from asymcl.cli.compare import compare_command
    from asymcl.compare import label_audit

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(label_audit, "write_audit", stopped)
    monkeypatch.chdir(tmp_path)
    heads = ["--classifier-loss", "cross_entropy"]
    with pytest.raises(SystemExit):
        compare_command([*QUICK, *heads, "--seeds", "1", "--methods", "CL,ACL", "--name", "one"])
    folder = tmp_path / "runs" / "one"
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["method"] for row in rows] == ["CL"]
    assert (folder / "report.html").exists() and (folder / "comparison.json").exists()
