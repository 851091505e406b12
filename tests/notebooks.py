"""Runs notebooks as nbdev-test does, each in a process forked from one that has loaded PyTorch and fastai already.

Under coverage, and for tools/mutate.py, the exported cells of a notebook run as the lines of the module that they are exported to."""

import ast
import json
import multiprocessing
import os
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 1200  # seconds after which a notebook is taken to hang
# What most notebooks import; asymcl itself is imported by each notebook, from this checkout
LOADED = ["fastai.vision.all", "matplotlib.pyplot", "nbdev.test", "scipy.stats", "sklearn"]
CELLS = {}  # code to run in place of a cell, by its id


def module_of(path):
    "Module that a notebook is exported to, None for one that exports nothing"
    match = re.search(r"#\| *default_exp ([\w.]+)", path.read_text())
    return match and ROOT.joinpath("asymcl", *match[1].split(".")).with_suffix(".py")


def compiled_cells(module, tree=None):
    "Code of each exported cell, by its id, from a module of asymcl or from a changed syntax tree of it"
    text = module.read_text()
    lines = text.splitlines()
    found = [(i, re.match(r"# %% \S+\.ipynb #(\w+)", line)) for i, line in enumerate(lines, 1)]
    marks = [(i, match[1]) for i, match in found if match]
    nodes = {}
    for node in (tree or ast.parse(text)).body:
        above = [name for i, name in marks if i < node.lineno]
        if isinstance(node, ast.ImportFrom) and node.level:  # the cell imports from asymcl
            package = module.relative_to(ROOT).parts[: -node.level]
            node.level, node.module = 0, ".".join([*package, *filter(None, [node.module])])
        if above:
            nodes.setdefault(above[-1], []).append(node)
    return {
        name: compile(ast.Module(body, []), str(module), "exec") for name, body in nodes.items()
    }


def replace_cells(cells):
    "From now on notebooks of this process run this code in place of the cells with these ids"
    import nbdev.test

    class Processor(nbdev.test.NBProcessor):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for cell in self.nb.cells:
                if cell.get("id") in cells:
                    cell.source = f"import notebooks\nexec(notebooks.CELLS[{cell.id!r}])"

    CELLS.update(cells)
    nbdev.test.NBProcessor = Processor


@cache
def processes():
    "Where processes come from: forks of a server that has imported LOADED, fresh processes where a system cannot fork"
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


def work(path, flags, log):
    "Run a notebook in this process, whose output goes into a file; exit code 1 where a cell fails"
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Workers of a notebook start as they do elsewhere: a child of the fork server would use that server for them
    multiprocessing.set_start_method(None, force=True)
    from nbdev.test import test_nb

    if os.environ.get("COVERAGE_RUN") and module_of(path):
        replace_cells(compiled_cells(module_of(path)))
    passed, _ = test_nb(path, ["notest", "slow"], flags, basepath=ROOT, cell_timeout=LIMIT)
    sys.stdout.flush()
    sys.exit(not passed)


def run_notebook(path, log, flags=()):
    "Run a notebook in a process of its own: exit code, and what it printed, with the traceback of a cell that fails"
    process = processes().Process(target=work, args=(path, flags, log))
    process.start()
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        process.join()
        return 1, f"{path} was still running after {LIMIT} seconds\n{log.read_text()}"
    return process.exitcode, log.read_text(errors="replace")


def has_slow_cells(path):
    "Whether a notebook has a cell that nbdev-test leaves out unless it is asked for with `--flags slow`"
    cells = json.loads(Path(path).read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return any(re.search(r"^#\| *slow\b", source, re.MULTILINE) for source in sources)
