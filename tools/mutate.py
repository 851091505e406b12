"""A test of the tests: change one thing at a time in a module of asymcl, and see whether its quick tests fail.

    python tools/mutate.py losses [--sample 100] [--seconds 3600] [--functions REGEX]

A mutant is the module with one operator, comparison, condition, constant or statement changed. Its tests are the notebook that the
module is exported from, whose exported cells run the mutant's lines, and the files of tests/ named in TESTS. Each mutant is tested in
a process forked from this one, which has loaded PyTorch and fastai. A mutant that no test notices is printed with its line; some of
them are equivalent to the original, such as another size of a block. Exit code 1 where less than --least per cent are killed.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

LOSSES = ["tests/test_losses.py"]
GROUPS = ["tests/images/test_image_files.py", "-k", "no_group or every_batch or groups_of"]
# Notebooks, and arguments of pytest, that test a module
TESTS = {
    "losses": (["losses"], LOSSES),
    "fused": (["fused", "losses"], LOSSES),
    "data.imbalance": (["data/imbalance"], GROUPS),
    "statistics": (["statistics"], []),
    "infer.model": (["infer/model"], []),
}
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


def source(name):
    "File of a module below asymcl"
    return ROOT.joinpath("asymcl", *name.split(".")).with_suffix(".py")


def other_constant(value):
    "Another value of a constant, None where it is not changed"
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else None


def changes(node):
    "Functions that each change the node of a syntax tree in place"
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
        yield lambda n: setattr(n, "op", SWAPS[type(n.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield lambda n: n.ops.__setitem__(0, SWAPS[type(n.ops[0])]())
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    if isinstance(node, ast.Constant) and other_constant(node.value) is not None:
        yield lambda n: setattr(n, "value", other_constant(n.value))
    if isinstance(node, ast.Return) and node.value is not None:
        yield lambda n: setattr(n, "value", ast.Constant(None))
    body = getattr(node, "body", None)
    for i, statement in enumerate(body if isinstance(body, list) else []):
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if isinstance(statement, ast.Expr | ast.AugAssign | ast.Raise) and not docstring:
            yield lambda n, i=i: n.body.__setitem__(i, ast.Pass())


def places(tree, functions):
    "Each node of functions and classes whose name matches, outside messages, and how often `changes` changes it"
    skip = set()
    for node in ast.walk(tree):
        message = isinstance(node, ast.Raise | ast.JoinedStr)
        annotations = [getattr(node, name, None) for name in ("annotation", "returns")]
        for part in ([node] if message else []) + [a for a in annotations if a]:
            skip |= {id(inner) for inner in ast.walk(part)} - {id(node)}
    chosen = [
        top
        for top in tree.body
        if isinstance(top, ast.FunctionDef | ast.ClassDef) and re.search(functions, top.name)
    ]
    inside = {id(node) for top in chosen for node in ast.walk(top)}
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in inside and id(node) not in skip:
            yield from ((number, which) for which in range(len(list(changes(node)))))


def mutant(tree, number, which):
    "A copy of the tree with one change; its line, and the statement before and after"
    tree = copy.deepcopy(tree)
    node = list(ast.walk(tree))[number]
    line = getattr(node, "lineno", 0)
    holders = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and node in set(ast.walk(n))]
    holder = holders[-1]  # ast.walk comes to the innermost last
    before = ast.unparse(holder).splitlines()
    list(changes(node))[which](node)
    ast.fix_missing_locations(tree)
    pairs = zip(before, ast.unparse(holder).splitlines(), strict=False)
    old, new = next((pair for pair in pairs if pair[0] != pair[1]), ("", "the last line removed"))
    return tree, f"line {line}: {old.strip()}  ->  {new.strip()}"


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    "Imports a module from a syntax tree"

    def __init__(self, name, tree):
        self.name, self.tree = name, tree

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            return importlib.util.spec_from_loader(name, self)

    def exec_module(self, module):
        exec(compile(self.tree, module.__name__, "exec"), module.__dict__)


def passes(name, tree):
    "In a process of its own: whether the tests of a module pass with the tree in its place"
    import notebooks
    import pytest
    from nbdev.test import test_nb

    papers, files = TESTS[name]
    sys.meta_path.insert(0, Mutated(f"asymcl.{name}", copy.deepcopy(tree)))
    notebooks.replace_cells(notebooks.compiled_cells(source(name), tree))
    for paper in papers:
        path = ROOT / "nbs" / "api" / f"{paper}.ipynb"
        if not test_nb(path, ["notest", "slow"], basepath=ROOT)[0]:
            return False
    os.chdir(ROOT)
    plain = ["-n0", "-x", "-q", "-p", "no:cacheprovider"]
    return not files or pytest.main([*files, *plain]) == 0


def survives(name, tree, limit=None):
    "Whether a mutant passes its tests within `limit` seconds, and how long that took"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            code = 0 if passes(name, tree) else 1
        finally:
            os._exit(code)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        took = time.monotonic() - start
        if ended:
            return status == 0, took
        if limit and took > limit:  # an endless loop is noticed, too
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False, took
        time.sleep(0.02)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", choices=TESTS)
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--seconds", type=float, help="begin no mutant after so many seconds")
    parser.add_argument("--functions", default="", help="regular expression of the names to change")
    parser.add_argument("--least", type=float, default=90, help="per cent to be killed")
    args = parser.parse_args()
    import fastai.vision.all  # noqa: F401  # forked processes need not load it
    import matplotlib.pyplot  # noqa: F401
    import nbdev.test  # noqa: F401
    import sklearn  # noqa: F401

    begin = time.monotonic()
    tree = ast.parse(source(args.module).read_text())
    passed, usual = survives(args.module, tree)
    if not passed:
        sys.exit(f"the tests of {args.module} fail without any change")
    found = list(places(tree, args.functions))
    random.Random(args.seed).shuffle(found)
    chosen, killed, survivors = found[: args.sample], 0, []
    for place in chosen:
        if args.seconds and time.monotonic() - begin > args.seconds:
            break
        changed, text = mutant(tree, *place)
        if survives(args.module, changed, 10 * usual + 60)[0]:
            survivors.append(text)
            print(f"survived, {text}", flush=True)
        else:
            killed += 1
    tried = killed + len(survivors)
    share = 100 * killed / max(tried, 1)
    print(
        f"{args.module}: {killed} of {tried} mutants killed ({share:.1f}%), {len(found)} in all, "
        f"{time.monotonic() - begin:.0f} s"
    )
    return share < args.least


if __name__ == "__main__":
    sys.exit(main())
