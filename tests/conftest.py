"""Which tests run: without options the quick ones, with --full all, with -m those that it names."""

import os

import pytest

# Before PyTorch is imported: as many processes of tests run side by side as there are cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

MARKS = {
    "slow": "takes many seconds, or tries at length what a quick test tries once",
    "browser": "drives a browser through the pages of the site",
    "fuzz": "hostile and unlucky input drawn at random",
    "kills": "processes that are killed, and started again",
    "ranks": "several processes that train together",
    "gpu": "CUDA against the CPU; skipped where there is no CUDA device, see tools/gpu.sh",
}
LATER = MARKS.keys() - {"gpu"}  # not without --full
# Fixtures that take seconds: what uses one of them runs in one process, which makes it once
SHARED = {"expected", "figures", "first_run", "model_folder", "ranks", "trained", "wheel"}


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run all tests, not only the quick ones")


def pytest_configure(config):
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def keep_together(item):
    "Mark a test for the process in which others use the same fixture with the same parameter"
    used = [name for name in item.fixturenames if name in SHARED]
    if used:
        case = item.callspec.indices if hasattr(item, "callspec") else {}
        group = [f"{name}{case.get(name, '')}" for name in used]
        item.add_marker(pytest.mark.xdist_group("-".join([item.path.stem, *group])))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")  # the longest first
    for item in items:
        keep_together(item)
    if config.option.full or config.option.markexpr:
        return
    later = [item for item in items if any(map(item.get_closest_marker, LATER))]
    config.hook.pytest_deselected(items=later)
    items[:] = [item for item in items if item not in set(later)]
