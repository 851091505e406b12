"""Which tests run: without options the quick ones; with --full all; with -m those that it names."""

MARKS = {
    "slow": "takes many seconds, or tries at length what a quicker test tries once",
    "browser": "drives a browser through the pages of the site",
    "fuzz": "hostile and unlucky input drawn at random",
    "kills": "processes killed at random moments and started again",
    "ranks": "several processes that train together",
    "gpu": "CUDA against the CPU; skipped where there is no CUDA device, see tools/gpu.sh",
}
QUICK = {"gpu"}  # marks of tests that run without --full, too


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="run all tests, not only the quick ones (minutes)"
    )


def pytest_configure(config):
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config, items):
    if config.option.full or config.option.markexpr:
        return
    later = MARKS.keys() - QUICK
    slow = [item for item in items if any(item.get_closest_marker(name) for name in later)]
    chosen = set(slow)
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in chosen]
