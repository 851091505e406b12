"""tools/mutate.py: which changes it makes, and which it leaves out."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = """
def positive(x: int = 3, *, strict=True):
    "A docstring"
    if x < 0 and strict:
        raise ValueError(f"x must be >= {0}, got {x}")
    total = x + 1
    total += 2
    return total
"""


@pytest.fixture(scope="module")
def tool():
    "tools/mutate.py as a module"
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_mutant_has_one_change(tool):
    tree = ast.parse(SOURCE)
    found = [tool.mutant(tree, *place) for place in tool.places(tree, "")]
    texts = sorted(text.partition(": ")[2] for _, text in found)
    assert texts == sorted(
        [
            "def positive(x: int=3, *, strict=True):  ->  def positive(x: int=4, *, strict=True):",
            "def positive(x: int=3, *, strict=True):  ->  def positive(x: int=3, *, strict=False):",
            "if x < 0 and strict:  ->  if not (x < 0 and strict):",
            "if x < 0 and strict:  ->  if x < 0 or strict:",
            "if x < 0 and strict:  ->  if x <= 0 and strict:",
            "if x < 0 and strict:  ->  if x < 1 and strict:",
            "raise ValueError(f'x must be >= {0}, got {x}')  ->  pass",
            "total = x + 1  ->  total = x - 1",
            "total = x + 1  ->  total = x + 2",
            "total += 2  ->  total -= 2",
            "total += 2  ->  total += 3",
            "total += 2  ->  pass",
            "return total  ->  return None",
        ]
    )
    assert ast.unparse(tree) == ast.unparse(ast.parse(SOURCE))  # the original stays


def test_only_functions_that_match_are_changed(tool):
    assert not list(tool.places(ast.parse(SOURCE), "negative"))


@pytest.mark.slow
def test_the_module_itself_survives_and_a_mutant_without_a_result_is_killed(tool):
    tree = ast.parse(tool.source("statistics").read_text())
    assert tool.survives("statistics", tree)[0]
    mutants = (tool.mutant(tree, *place) for place in tool.places(tree, "holm"))
    changed = next(mutant for mutant, text in mutants if text.endswith("->  return None"))
    assert not tool.survives("statistics", changed)[0]
