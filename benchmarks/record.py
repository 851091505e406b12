"""One format for what a benchmark measured: JSON with the command, versions, commit, machine and date, and rows, of which tables are made.

`python benchmarks/record.py FILE...` prints records as tables.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from shutil import which

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("asymcl", "torch", "torchvision", "fastai", "scikit-learn", "numpy")


def commit():
    "The commit that was measured, with + where files differ from it; None outside a checkout"

    def git(*command):
        done = subprocess.run(
            ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else None

    return git("describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+")


def processor():
    "Name of the processor"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def driver():
    "Version of the GPUs' driver as nvidia-smi reports it; None without that command"
    if not which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.partition("\n")[0]


def machine():
    "Processor, cores, threads and GPUs with CUDA's version and the driver's, without the name of the machine"
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = dict(
        processor=processor(), cores=os.cpu_count(), threads=torch.get_num_threads(), gpus=gpus
    )
    return found | (dict(cuda=torch.version.cuda, driver=driver()) if gpus else {})


def command():
    "The command line of this process"
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[1]
    name = script.relative_to(root) if script.is_relative_to(root) else script.name
    return shlex.join(["python", str(name), *sys.argv[1:]])


def record(rows, **facts):
    "What is kept of a measurement: `rows` is a list of dicts, a row of a table each; `facts` hold for all of them"
    return dict(
        command=command(),
        date=datetime.now(UTC).date().isoformat(),
        commit=commit(),
        versions=dict(python=platform.python_version()) | {p: version(p) for p in PACKAGES},
        machine=machine(),
        **facts,
        rows=rows,
    )


def write(content, path):
    "Write records, one or a list, as JSON"
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def save(content, path):
    "Print records, one or a list, as tables, and write them as JSON unless `path` is None"
    print(table(content))
    if path:
        write(content, path)


def flat(row, above=""):
    "A row with its inner dicts as columns, `outer, inner`"
    columns = {}
    for name, value in row.items():
        if isinstance(value, dict):
            columns |= flat(value, f"{above}{name}, ")
        else:
            columns[above + str(name)] = value
    return columns


def shown(value):
    "A cell of a table"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)


def described(value):
    "What is known about a measurement in a few words"
    if isinstance(value, dict):
        return ", ".join(f"{k} {described(v)}" for k, v in value.items() if v not in ([], None))
    return ", ".join(map(described, value)) if isinstance(value, list) else str(value)


def table(content):
    "Records, one or a list, as text"
    if isinstance(content, list):
        return "\n\n".join(map(table, content))
    facts = [f"{k}: {described(v)}" for k, v in content.items() if k != "rows" and v is not None]
    rows = [flat(row) for row in content["rows"]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns] + [[shown(row.get(name)) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([*facts, "", *lines])


def add_options(parser):
    "The options that every benchmark has"
    parser.add_argument("--out", type=Path, help="JSON of the record (default: only print it)")
    parser.add_argument(
        "--toy", action="store_true", help="so little that it ends in seconds and measures nothing"
    )


def add_precision(parser):
    "Add --precision, that of training, to the options of a benchmark"
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp32"),
        default="bf16",
        help="fp32 for a processor without bfloat16 instructions, where bf16 is slow",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        print(f"{path.name}\n{table(json.loads(path.read_text()))}\n")


if __name__ == "__main__":
    main()
