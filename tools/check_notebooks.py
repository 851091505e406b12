"""Checks what no test of a notebook sees: how it reads, and what is saved in it.

    pip install codespell
    python tools/check_notebooks.py                     # every notebook below nbs/
    python tools/check_notebooks.py nbs/api/losses.ipynb

Each problem is a line `notebook: cell number (id): text`, with cells counted from 1, and makes the exit code 1. Long
exported cells are listed, too, and are no error. The rules are the functions in RULES.
Words that codespell takes for typing errors are allowed in [tool.codespell] of
pyproject.toml, by `ignore-words-list`.
"""

import argparse
import ast
import contextlib
import io
import itertools
import json
import os
import re
import sys
import tempfile
import tokenize
from pathlib import Path

import codespell_lib

ROOT = Path(__file__).resolve().parents[1]
DIRECTIVE = re.compile(r"\s*#\s*\|\s*([\w-]+):?(.*)")
CODE_IN_MARKDOWN = re.compile(r"^\s*```.*?^\s*```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
NO_ALT = re.compile(r"""!\[\s*\][(\[]|<img\b(?![^>]*\balt=["']?[^"'\s>])""")
MACHINE_PATH = re.compile(r"""[^\s"'\\]*(?:/tmp/|/home/|/root/|site-packages)[^\s"'\\]*""")
RETURNS_NOTHING = re.compile(
    r"(test|assert)_\w+|_?discard|clean|cleanup|close|filterwarnings|rmdir|rmtree|savez|unlink"
)
PICTURES = {"image/png", "image/svg+xml"}
LONGEST = 45  # lines of an exported cell; longer ones are listed
MOST_IN_A_ROW = 2  # code cells under one piece of prose: what is exported and its test


def source(cell):
    "The text of a cell"
    return "".join(cell["source"])


def directives(cell):
    "Directives on the first lines of a code cell: name -> value"
    lines = itertools.takewhile(
        lambda line: not line.strip() or DIRECTIVE.match(line), source(cell).splitlines()
    )
    return {match[1]: match[2].strip(" \"'") for match in map(DIRECTIVE.match, lines) if match}


def tree(cell):
    "Syntax tree of a code cell; without statements where the cell is not plain Python, as under `%%bash`"
    try:
        return ast.parse(source(cell))
    except SyntaxError:
        return ast.parse("")


def code_cells(notebook, hidden=True):
    "Number and cell of the code cells, with or without those under `#| hide`"
    cells = (
        (n, cell) for n, cell in enumerate(notebook["cells"], 1) if cell["cell_type"] == "code"
    )
    return ((n, cell) for n, cell in cells if hidden or "hide" not in directives(cell))


def markdown_cells(notebook):
    "Number and text of the markdown cells, without the code in them"
    return (
        (n, CODE_IN_MARKDOWN.sub("", source(cell)))
        for n, cell in enumerate(notebook["cells"], 1)
        if cell["cell_type"] == "markdown"
    )


def pictures(cell):
    "Whether a picture is saved in a code cell"
    return any(PICTURES & output.get("data", {}).keys() for output in cell["outputs"])


def long_cells(notebook):
    "Exported cells that are longer than one idea should be: number and lines, blank ones not counted"
    for n, cell in code_cells(notebook):
        if directives(cell).keys() & {"export", "exporti", "exports"}:
            code = [line for line in source(cell).splitlines() if not DIRECTIVE.match(line)]
            lines = sum(bool(line.strip()) for line in code)
            if lines > LONGEST:
                yield n, f"exported cell of {lines} lines, more than {LONGEST}"


def prints(node):
    "Whether code prints when it is run, rather than when it is called later"
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        return False
    if (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == "print"
        and "file" not in {k.arg for k in node.keywords}
    ):
        return True
    return any(map(prints, ast.iter_child_nodes(node)))


def shows(cell):
    """Whether a code cell ends on an expression that Jupyter would show.

    A call may return None. Those that are known to are left out, by the name of what is called."""
    last = tree(cell).body[-1:]
    if not last or not isinstance(last[0], ast.Expr) or source(cell).rstrip().endswith(";"):
        return False
    call = last[0].value
    return not (
        isinstance(call, ast.Call)
        and RETURNS_NOTHING.fullmatch(ast.unparse(call.func).rpartition(".")[2])
    )


def saved_outputs(notebook):
    "What a reader should see is saved in the notebook"
    cells = list(code_cells(notebook, hidden=False))
    if cells and not any(cell["outputs"] for _, cell in cells):
        yield 1, "notebook without saved outputs"
        return
    for n, cell in cells:
        if not cell["outputs"] and shows(cell):
            yield n, "ends on an expression, but no output is saved"
        if prints(tree(cell)) and not any(
            output.get("name") == "stdout" for output in cell["outputs"]
        ):
            yield n, "prints, but nothing printed is saved"
        if "fig-alt" in directives(cell) and not pictures(cell):
            yield n, "has a fig-alt, but no picture is saved"


def clean_outputs(notebook):
    "No saved output is an error, a warning, or of interest on one machine only"
    for n, cell in code_cells(notebook):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                yield n, f"saved error {output['ename']}: {output['evalue']}"
            if output.get("name") == "stderr":
                yield n, f"saved stderr: {''.join(output['text']).strip()[:80]!r}"
            data = {
                kind: value
                for kind, value in output.get("data", {}).items()
                if not kind.startswith("image/")
            }
            path = MACHINE_PATH.search(json.dumps(output | {"data": data}))
            if path:
                yield n, f"output names a path of a machine: {path[0]}"


def words_between(notebook):
    "No more than a few code cells follow each other without prose; hidden ones and imports do not count"
    visible, in_a_row = dict(code_cells(notebook, hidden=False)), 0
    for n, cell in enumerate(notebook["cells"], 1):
        if cell["cell_type"] == "markdown":
            in_a_row = 0
        elif n in visible and not all(
            isinstance(s, (ast.Import, ast.ImportFrom)) for s in tree(cell).body
        ):
            in_a_row += 1
            if in_a_row == MOST_IN_A_ROW + 1:
                yield n, f"code cell {in_a_row} in a row without prose, {MOST_IN_A_ROW} at most"


def alternative_text(notebook):
    "Every picture can be read aloud"
    for n, cell in code_cells(notebook, hidden=False):
        if pictures(cell) and not directives(cell).get("fig-alt"):
            yield n, "picture without #| fig-alt:"
    for n, text in markdown_cells(notebook):
        if NO_ALT.search(text):
            yield n, "image without alternative text"


def prose(cell):
    "What is written for people in a cell: markdown, or the comments and docstrings of code"
    if cell["cell_type"] != "code":
        return source(cell)
    statements = tree(cell)
    if not statements.body:
        return source(cell)
    tokens = tokenize.generate_tokens(io.StringIO(source(cell)).readline)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [
        ast.get_docstring(node) or ""
        for node in ast.walk(statements)
        if isinstance(node, documented)
    ]
    return "\n".join(
        [*docstrings, *(token.string for token in tokens if token.type == tokenize.COMMENT)]
    )


def spelling(notebook):
    "No word that codespell takes for a typing error; it reads a folder with a file for each cell"
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        for n, cell in enumerate(notebook["cells"], 1):
            (Path(folder) / str(n)).write_text(prose(cell), encoding="utf-8")
        codespell_lib.main(
            "--disable-colors", "--builtin=clear,rare", f"--toml={ROOT / 'pyproject.toml'}", folder
        )
    for line in printed.getvalue().splitlines():
        path, _, text = line.split(":", 2)
        yield int(Path(path).name), f"spelling:{text}"


def execution_order(notebook):
    "Either no cell has an execution count, or they tell of one run from top to bottom"
    counts = [(n, cell["execution_count"], cell["outputs"]) for n, cell in code_cells(notebook)]
    before = 0
    for n, count, outputs in counts:
        if count is None:
            if outputs and any(other for _, other, _ in counts):
                yield n, "output without an execution count, which other cells have"
            continue
        if count != before + 1:
            yield n, f"execution count {count} after {before}"
        before = count


def headings(notebook):
    "A title with a promise comes first, and no level of headings is skipped"
    first = notebook["cells"][0]
    if first["cell_type"] != "markdown" or not re.match(r"# \S", source(first)):
        yield 1, "the first cell has no # Title"
    elif not re.search(r"^> \S", source(first), re.MULTILINE):
        yield 1, "no > promise under the title"
    level = 1
    for n, text in markdown_cells(notebook):
        for marks in re.findall(r"^(#+)\s", text, re.MULTILINE):
            if len(marks) > level + 1:
                yield n, f"heading of level {len(marks)} under level {level}"
            level = len(marks)


RULES = (
    saved_outputs,
    clean_outputs,
    words_between,
    alternative_text,
    spelling,
    execution_order,
    headings,
)


def main(arguments=None):
    "Print the problems of the notebooks; returns the exit code"
    parser = argparse.ArgumentParser(
        description="Check how notebooks read, and what is saved in them."
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="those to check (default: all below nbs/)"
    )
    every = (
        path
        for path in sorted((ROOT / "nbs").rglob("*.ipynb"))
        if ".ipynb_checkpoints" not in path.parts
    )
    paths = parser.parse_args(arguments).notebooks or list(every)
    n_cells, found = 0, False
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        n_cells += len(notebook["cells"])
        problems = [problem for rule in RULES for problem in rule(notebook)]
        found = found or bool(problems)
        for n, text in sorted([*problems, *long_cells(notebook)], key=lambda problem: problem[0]):
            print(
                f"{os.path.relpath(path)}: cell {n} ({notebook['cells'][n - 1].get('id')}): {text}"
            )
    if not found:
        print(f"{len(paths)} notebooks with {n_cells} cells: no problems")
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
