"""Every notebook runs through nbdev's own test command, one test a notebook; the report of a failure names the cell.

Tutorials are run by Jupyter too, as their readers will do it."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(
    p.relative_to(ROOT).as_posix()
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if ".ipynb_checkpoints" not in p.parts
)


def run(*command):
    "Run a command by this Python, in a process of its own"
    environment = {"OMP_NUM_THREADS": "1"} | os.environ  # several run side by side
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def run_notebook(path):
    "Run one notebook by nbdev-test"
    return run(Path(sysconfig.get_path("scripts")) / "nbdev-test", path)


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook(path):
    done = run_notebook(path)
    assert done.returncode == 0, f"{path} failed:\n{done.stderr[-6000:]}\n{done.stdout[-1000:]}"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.startswith("nbs/tutorials/")])
def test_tutorial_in_jupyter(path):
    done = run("-m", "jupyter", "execute", "--timeout=1200", path)
    assert done.returncode == 0, f"{path} failed in Jupyter:\n{done.stderr[-6000:]}"


def test_a_failing_cell_fails_the_test_and_is_named(tmp_path):
    source = '{"cell_type": "code", "id": "badcell1", "metadata": {}, "outputs": [], "execution_count": null, "source": ["assert 1 == 2"]}'
    notebook = tmp_path / "broken.ipynb"
    notebook.write_text(
        f'{{"cells": [{source}], "metadata": {{}}, "nbformat": 4, "nbformat_minor": 5}}'
    )
    done = run_notebook(notebook)
    assert done.returncode != 0
    assert "broken.ipynb" in done.stderr and "assert 1 == 2" in done.stderr
