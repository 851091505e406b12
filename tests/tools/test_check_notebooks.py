"tools/check_notebooks.py: for each rule, notebooks that break it and what is printed, and sound ones"

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISE = "# Title\n\n> A promise."
SAVED = {
    "output_type": "execute_result",
    "execution_count": None,
    "metadata": {},
    "data": {"text/plain": ["1"]},
}
PICTURE = {
    "output_type": "display_data",
    "metadata": {},
    "data": {"image/png": "iVBORw0K/tmp/", "text/plain": ["<Figure>"]},
}


def stream(text, name="stdout"):
    "What a cell wrote"
    return {"output_type": "stream", "name": name, "text": [text]}


def code(text, *outputs, count=None):
    "A code cell"
    return {
        "cell_type": "code",
        "source": text.splitlines(keepends=True),
        "outputs": outputs,
        "execution_count": count,
    }


SOUND = code("a = 1\na", SAVED)


@pytest.fixture(scope="module")
def tool():
    "tools/check_notebooks.py as a module"
    spec = importlib.util.spec_from_file_location(
        "check_notebooks", ROOT / "tools" / "check_notebooks.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(tool, tmp_path, monkeypatch, capsys):
    """Check a notebook of these cells, a string being markdown; returns the lines that are printed, if they are problems.

    Spelling is checked where asked for, since codespell takes a moment to read its dictionaries."""
    monkeypatch.chdir(tmp_path)
    rules = tool.RULES

    def run(*cells, title=PROMISE, spelling=False):
        monkeypatch.setattr(
            tool, "RULES", [rule for rule in rules if spelling or rule is not tool.spelling]
        )
        cells = [
            {"cell_type": "markdown", "source": cell} if isinstance(cell, str) else cell
            for cell in (title, *cells)
        ]
        cells = [dict(cell, id=f"id{n}") for n, cell in enumerate(cells, 1)]
        Path("x.ipynb").write_text(
            json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
        )
        failed = tool.main(["x.ipynb"])
        lines = capsys.readouterr().out.splitlines()
        if not failed:
            assert lines == [f"1 notebooks with {len(cells)} cells: no problems"]
        return lines if failed else []

    return run


@pytest.mark.parametrize("directive", ["export", "exporti", "exports"])
def test_long_exported_cells_are_listed(tool, directive):
    def listed(n):
        cell = code(f"\n#| {directive}\n\n" + "a = 1\n\n" * n)
        return list(tool.long_cells({"cells": [cell]}))

    assert listed(46) == [(1, "exported cell of 46 lines, more than 45")]
    assert listed(45) == []
    assert list(tool.long_cells({"cells": [code("a = 1\n" * 46)]})) == []


def test_no_saved_output_at_all(check):
    assert check(code("a")) == ["x.ipynb: cell 1 (id1): notebook without saved outputs"]
    assert check(code("#| hide\na")) == []


def test_expression_without_output(check):
    line = "x.ipynb: cell 4 (id4): ends on an expression, but no output is saved"
    for text in ("a", "data.show(8)", "f(x).round(3)"):
        assert check(SOUND, "Word.", code(text)) == [line], text
    silent = (
        "a = 1",
        "data.show(8);",
        "test_eq(1, 1)",
        "np.testing.assert_allclose(a, b)",
        "(folder / 'a').unlink()",
    )
    for text in (*silent, "#| hide\na", "%%bash\na"):
        assert check(SOUND, "Word.", code(text)) == [], text


def test_print_without_output(check):
    line = "x.ipynb: cell 4 (id4): prints, but nothing printed is saved"
    loop = "for a in b:\n    print(a)"
    assert check(SOUND, "Word.", code(loop)) == [line]
    assert check(SOUND, "Word.", code(loop, SAVED)) == [line]
    assert line in check(SOUND, "Word.", code(loop, stream("1", "stderr")))
    assert check(SOUND, "Word.", code(loop, stream("1"))) == []
    assert check(SOUND, "Word.", code("def f(): print(1)")) == []
    assert check(SOUND, "Word.", code("print(1, file=f);")) == []


def test_plot_without_output(check):
    cell = "#| fig-alt: A line.\nplot();"
    assert check(SOUND, code(cell)) == [
        "x.ipynb: cell 3 (id3): has a fig-alt, but no picture is saved"
    ]
    assert check(SOUND, code(cell, PICTURE)) == []


def test_saved_error(check):
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    assert check(code("f()", error)) == ["x.ipynb: cell 2 (id2): saved error ValueError: no"]


def test_saved_stderr(check):
    assert check(code("f()", stream("Warning: a\n", "stderr"))) == [
        "x.ipynb: cell 2 (id2): saved stderr: 'Warning: a'"
    ]
    assert check(code("f()", stream("Warning: a\n"))) == []


@pytest.mark.parametrize("path", ["/tmp/x", "/home/me/x", "/root/x", "lib/site-packages/x.py"])
def test_output_with_a_path_of_a_machine(check, path):
    line = [f"x.ipynb: cell 2 (id2): output names a path of a machine: {path}"]
    assert check(code("f()", stream(f"in {path}\nor"))) == line
    assert check(code("f()", SAVED | {"data": {"text/html": [f"<b>'{path}'</b>"]}})) == line
    assert check(code(f"a = '{path}'\na", SAVED)) == []


def test_code_cells_in_a_row(check):
    line = "x.ipynb: cell 4 (id4): code cell 3 in a row without prose, 2 at most"
    assert check(SOUND, SOUND, SOUND, SOUND) == [line]
    assert check(SOUND, SOUND, "Word.", SOUND) == []
    assert (
        check(
            code("import a\nfrom b import c"),
            code("#| default_exp x"),
            code("#| hide\na = 1"),
            SOUND,
            SOUND,
        )
        == []
    )
    assert check(SOUND, SOUND, code("import a\na = 1")) == [line]


def test_picture_without_alternative_text(check):
    line = "x.ipynb: cell 2 (id2): picture without #| fig-alt:"
    svg = PICTURE | {"data": {"image/svg+xml": ["<svg/>"]}}
    for picture in (PICTURE, svg):
        assert check(code("plot();", picture)) == [line]
        assert check(code("#| fig-alt: \nplot();", picture)) == [line]
        assert check(code("#| echo: false\n#| fig-alt: A line.\nplot();", picture)) == []


def test_markdown_image_without_alternative_text(check):
    line = "x.ipynb: cell 2 (id2): image without alternative text"
    without = "![](a.png)", "![ ][a]", '<img src="a.png">', '<img alt="" src="a.png">'
    for image in without:
        assert check(f"See {image}", SOUND) == [line], image
    sound = "![A line](a.png)", '<img src="a.png" alt="A line">', "`![](a.png)`"
    for image in sound:
        assert check(f"See {image}", SOUND) == [], image


@pytest.mark.parametrize(
    "cell",
    [
        "teh",
        "A teh word.",
        code("!echo teh"),
        code("# teh word\na = 1"),
        code('def f():\n    "A teh word"'),
        code("#| fig-alt: teh word\nplot();", PICTURE),
    ],
)
def test_spelling(check, cell):
    assert check(SOUND, cell, spelling=True) == ["x.ipynb: cell 3 (id3): spelling: teh ==> the"]


def test_spelling_of_code_and_british_words_is_sound(check):
    assert (
        check(
            "The colour of the centre, to normalise.",
            code("teh = 'teh'\nteh", SAVED),
            spelling=True,
        )
        == []
    )


def test_spelling_heeds_pyproject(check, tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "ROOT", tmp_path / "project")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pyproject.toml").write_text(
        '[tool.codespell]\nignore-words-list = "teh"\n'
    )
    assert check("A teh and a recieve.", SOUND, spelling=True) == [
        "x.ipynb: cell 2 (id2): spelling: recieve ==> receive"
    ]


def test_execution_order(check):
    def counted(*counts):
        return [code("a = 1\na", SAVED, count=count) for count in counts]

    assert check(*counted(2, 3)) == ["x.ipynb: cell 2 (id2): execution count 2 after 0"]
    assert check(*counted(1, 3)) == ["x.ipynb: cell 3 (id3): execution count 3 after 1"]
    assert check(*counted(1, 1)) == ["x.ipynb: cell 3 (id3): execution count 1 after 1"]
    assert check(*counted(1, None)) == [
        "x.ipynb: cell 3 (id3): output without an execution count, which other cells have"
    ]
    assert check(*counted(1, 2)) == check(*counted(None, None)) == []
    assert check(SOUND | {"execution_count": 1}, code("")) == []


def test_title_and_promise(check):
    no_title, no_promise = (
        "x.ipynb: cell 1 (id1): the first cell has no # Title",
        "x.ipynb: cell 1 (id1): no > promise under the title",
    )
    for title in ("Title\n\n> A promise.", "## Title\n\n> A promise."):
        assert check(SOUND, title=title) == [no_title]
    assert check(PROMISE, SOUND, title=code(PROMISE)) == [no_title]
    assert check(SOUND, title="# Title\n\nNo promise > this.") == [no_promise]


def test_skipped_level_of_headings(check):
    assert check("## A\n\n#### B", SOUND) == [
        "x.ipynb: cell 2 (id2): heading of level 4 under level 2"
    ]
    assert check("## A\n\n### B", "## C\n\n#### D", SOUND) == [
        "x.ipynb: cell 3 (id3): heading of level 4 under level 2"
    ]
    assert check("## A\n\n### B\n\n## C", "```sh\n#### not a heading\n```", SOUND) == []


def test_problems_come_in_the_order_of_the_cells(check):
    lines = check(
        "A teh word.", code("f()", stream("/tmp/x")), "![](a.png)", title="Title", spelling=True
    )
    assert [line.split(" (")[0] for line in lines] == [f"x.ipynb: cell {n}" for n in (1, 2, 3, 4)]


def test_without_arguments_all_notebooks_below_nbs(tool, tmp_path, monkeypatch, capsys):
    for name in ("a", "api/b", "api/.ipynb_checkpoints/c"):
        path = tmp_path / f"nbs/{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    "cells": [
                        {
                            "cell_type": "markdown",
                            "id": "t",
                            "source": PROMISE.splitlines(keepends=True),
                        }
                    ]
                }
            )
        )
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert tool.main([]) == 0
    assert capsys.readouterr().out == "2 notebooks with 2 cells: no problems\n"
    (tmp_path / "nbs" / "api" / "b.ipynb").write_text(
        '{"cells": [{"cell_type": "markdown", "id": "t", "source": "b"}]}'
    )
    monkeypatch.chdir(tmp_path)
    assert tool.main([]) == 1
    assert capsys.readouterr().out == "nbs/api/b.ipynb: cell 1 (t): the first cell has no # Title\n"
