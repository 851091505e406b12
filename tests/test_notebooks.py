"""Every notebook runs as by nbdev-test, one test a notebook; the report of a failure names the cell.

Tutorials are run by Jupyter instead, as their readers will do it, with their slow cells."""

import ast
import builtins
import json
import re
import subprocess
import sys

import pytest
from notebooks import ROOT, compiled_cells, has_slow_cells, module_of, run_notebook

NOTEBOOKS = sorted(
    p.relative_to(ROOT).as_posix()
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if ".ipynb_checkpoints" not in p.parts
)
TUTORIALS = [p for p in NOTEBOOKS if p.startswith("nbs/tutorials/")]
QUICK = ["nbs/api/", "nbs/index.ipynb", "nbs/tutorials/drop_in_loss.ipynb"]  # of each group


def cases(paths):
    "Parameters of a test, marked slow but for those of QUICK"
    quick = tuple(QUICK)
    return [p if p.startswith(quick) else pytest.param(p, marks=pytest.mark.slow) for p in paths]


@pytest.mark.parametrize("path", cases(p for p in NOTEBOOKS if p not in TUTORIALS))
def test_notebook(path, tmp_path):
    code, output = run_notebook(ROOT / path, tmp_path / "log")
    assert code == 0, f"{path} failed:\n{output[-6000:]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if p not in TUTORIALS and has_slow_cells(ROOT / p)]
)
def test_notebook_with_its_slow_cells(path, tmp_path):
    code, output = run_notebook(ROOT / path, tmp_path / "log", flags=["slow"])
    assert code == 0, f"{path} failed:\n{output[-6000:]}"


@pytest.mark.parametrize("path", cases(TUTORIALS))
def test_tutorial_in_jupyter(path):
    command = [sys.executable, "-m", "jupyter", "execute", "--timeout=1200", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{path} failed in Jupyter:\n{done.stderr[-6000:]}"


def code_of(path):
    "Code of each cell that readers see, with the heading above it"
    found, heading = [], None
    for cell in json.loads((ROOT / path).read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^## (.+)$", source, re.MULTILINE) or [heading])[-1]
        elif cell["cell_type"] == "code" and not re.match(r"#\| *hide\b", source):
            found.append((heading, source))
    return found


def bound_names(trees):
    "Names that imports, definitions and assignments bind anywhere in syntax trees"
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            yield node.name


@pytest.mark.parametrize("path", TUTORIALS)
def test_the_code_that_readers_see_needs_no_hidden_cell(path):
    trees = [ast.parse(source) for _, source in code_of(path)]
    used = {
        node.id
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert not used - set(bound_names(trees)) - set(dir(builtins))


@pytest.mark.slow
def test_each_cell_of_the_cheatsheet_runs_alone(tmp_path, monkeypatch):
    "Only files of an earlier cell may be needed, such as a folder of photos"
    monkeypatch.chdir(tmp_path)
    for _, source in code_of("nbs/tutorials/cheatsheet.ipynb"):
        exec(source, {"__name__": "__main__"})


@pytest.mark.slow
def test_each_section_of_troubleshooting_runs_alone():
    sections = {}
    for heading, source in code_of("nbs/tutorials/troubleshooting.ipynb"):
        sections[heading] = f"{sections.get(heading, '')}{source}\n"
    assert len(sections) == 8
    for source in sections.values():
        exec(source, {"__name__": "__main__"})


def notebook(folder, *sources):
    "Path of a notebook with these code cells"
    cells = [
        dict(
            cell_type="code",
            id=f"cell{i}",
            metadata={},
            outputs=[],
            execution_count=None,
            source=[source],
        )
        for i, source in enumerate(sources)
    ]
    path = folder / "made.ipynb"
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return path


def test_a_failing_cell_fails_the_test_and_is_named(tmp_path):
    code, output = run_notebook(notebook(tmp_path, "1 == 1", "assert 1 == 2"), tmp_path / "log")
    assert code != 0
    assert "made.ipynb" in output and "Cell #2" in output and "assert 1 == 2" in output


def test_a_process_that_ends_early_fails_the_test(tmp_path):
    code, _ = run_notebook(notebook(tmp_path, "import os", "os._exit(7)"), tmp_path / "log")
    assert code == 7


def test_slow_cells_run_where_they_are_asked_for(tmp_path):
    path = notebook(tmp_path, "#| slow\nassert 1 == 2")
    assert has_slow_cells(path) and not has_slow_cells(notebook(tmp_path, "slow = 1"))
    path = notebook(tmp_path, "#| slow\nassert 1 == 2")
    assert run_notebook(path, tmp_path / "log")[0] == 0
    assert run_notebook(path, tmp_path / "log", flags=["slow"])[0] != 0


def test_a_notebook_runs_in_its_folder_with_the_package_of_this_checkout(tmp_path):
    sources = [
        f"from pathlib import Path\nassert Path.cwd() == Path({str(tmp_path)!r})",
        f"import asymcl\nassert Path(asymcl.__file__).parents[1] == Path({str(ROOT)!r})",
    ]
    code, output = run_notebook(notebook(tmp_path, *sources), tmp_path / "log")
    assert code == 0, output


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.startswith("nbs/api/")])
def test_lines_of_a_module_stand_for_the_exported_cells(path):
    cells = json.loads((ROOT / path).read_text())["cells"]
    exported = {c["id"] for c in cells if re.match(r"#\| *exporti?\b", "".join(c["source"]))}
    assert exported and exported == compiled_cells(module_of(ROOT / path)).keys()
