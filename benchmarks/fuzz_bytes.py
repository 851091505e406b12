"""Feed the readers of files with bytes that coverage guides, for minutes: every input must end in a result or the documented error.

    python -m pip install atheris
    python benchmarks/fuzz_bytes.py --seconds 60 --out benchmarks/results/fuzz_bytes.json

tests/test_fuzz.py damages files blindly; atheris (libFuzzer) keeps the inputs that reach new branches of asymcl, Pillow and NumPy, and goes
on from there. What is called, and what must hold, are the bodies of those tests. Another error than the documented one, an input that takes
more than 20 seconds or 6 GB, and a crash end the run of a reader and count as found; the input is kept in the working folder.
"""

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

from record import add_options, record, save

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def readers(folder):
    "Of each reader of files: bytes to start from, and a function of bytes that raises where something is wrong"
    import test_fuzz as t

    def body(test, *fixtures, **fixed):
        return lambda data: test.hypothesis.inner_test.__wrapped__(*fixtures, data, **fixed)

    load_model = body(t.test_load_model, folder)
    return {
        "read_idx": (
            [t.idx(7), t.idx(2, 3, 4), gzip.compress(t.idx(50), mtime=0)],
            body(t.test_read_idx, folder),
        ),
        "decode": (t.IMAGES, body(t.test_decode, size=8, channels=3, fit="squish")),
        "zip_members": (t.ARCHIVES, body(t.test_zip_members, folder)),
        "from_npz": ([t.npz(**t.parts(6))], body(t.test_from_npz, folder)),
        "read_table": (
            [t.CSV.encode()],
            lambda data: t.attempt(["data.csv"], t.read_table, data, "data.csv"),
        ),
        "read_records": ([json.dumps(t.RECORD).encode()], body(t.test_read_records, folder)),
        "load_model, description": ([t.DESCRIBED], lambda data: load_model((data, t.TENSORS))),
        "load_model, safetensors": ([t.TENSORS], lambda data: load_model((t.DESCRIBED, data))),
    }


def feed(name, seconds):
    "This process, until its end, feeds one reader"
    import atheris

    with atheris.instrument_imports(include=["asymcl", "PIL", "numpy.lib", "safetensors"]):
        import test_fuzz  # noqa: F401
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp())
    seeds, call = readers(folder)[name]
    (folder / "corpus").mkdir()
    for i, data in enumerate(seeds):
        (folder / "corpus" / str(i)).write_bytes(data)
    found = f"-artifact_prefix={Path.cwd()}/"
    atheris.Setup(
        [
            sys.argv[0],
            str(folder / "corpus"),
            f"-max_total_time={seconds}",
            "-timeout=20",
            "-rss_limit_mb=6144",
            "-print_final_stats=1",
            "-max_len=20000",
            found,
        ],
        call,
    )
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--reader", help="feed this one only, in this process")
    add_options(parser)
    args = parser.parse_args()
    if args.toy:
        args.seconds = 1
    if args.reader:
        return feed(args.reader, args.seconds)
    fuzzer, rows = f"atheris {version('atheris')}", []  # an error without atheris
    with tempfile.TemporaryDirectory() as folder:
        for name in readers(Path(folder)):
            command = [sys.executable, __file__, "--reader", name, "--seconds", str(args.seconds)]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                env=os.environ | dict(TMPDIR=folder),
            )
            inputs = re.findall(r"number_of_executed_units: *(\d+)", done.stderr)
            if not inputs:
                sys.exit(f"{name} was not fed: {done.stderr[-2000:]}")
            branches = re.findall(r"cov: (\d+)", done.stderr)
            rows.append(
                dict(
                    reader=name,
                    inputs=int(inputs[-1]),
                    branches_at_first=int(branches[0]) if branches else 0,
                    branches=int(branches[-1]) if branches else 0,
                    found=int(done.returncode != 0),
                )
            )
            if done.returncode:
                print(done.stderr[-2000:], flush=True)
    save(record(rows, seconds_each=args.seconds, fuzzer=fuzzer), args.out)
    return any(row["found"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
