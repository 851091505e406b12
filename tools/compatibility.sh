#!/usr/bin/env bash
# Tests the package with the oldest or the newest releases that settings.ini admits:
#     bash tools/compatibility.sh oldest|newest FOLDER
# FOLDER is new and keeps the virtual environment; PyTorch with its libraries is about 6 GB. What was installed, how much passed and
# what failed goes into benchmarks/results/compatibility.json.
set -euo pipefail
[[ $# == 2 && $1 =~ ^(oldest|newest)$ && ! -e $2 ]] || { echo "usage: $0 oldest|newest FOLDER (a new one)" >&2; exit 2; }
which=$1
folder=$(realpath -m "$2")
cd "$(dirname "$0")/.."
export MPLBACKEND=Agg PIP_DISABLE_PIP_VERSION_CHECK=1

python=python3  # the newest releases: on whatever Python is there
if [[ $which == oldest ]]; then python=python$(sed -n 's/^min_python *= *//p' settings.ini); fi
"$python" -m venv "$folder"
. "$folder/bin/activate"

# Every name>=x of settings.ini becomes name==x, which pip reads as x.0 too. What the requirements of the package require in turn
# (numpy, pandas, pillow, fastcore) is the newest that they admit, as a user gets it.
python - "$which" >"$folder/constraints.txt" <<'PYTHON'
import sys
from configparser import ConfigParser

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
if sys.argv[1] == "oldest":
    extras = "tune", "onnx", "timm", "explain", "hub"
    for key in ("requirements", *(f"requirements_{name}" for name in extras)):
        for requirement in config["DEFAULT"][key].split():
            name, bound = requirement.split(">=")  # an error where there is no lower bound
            print(f"{name}=={bound}")
PYTHON

# Not the extra `dev`: its nbdev needs a newer fastcore than the oldest fastai admits. These are what the tests below use;
# setuptools, since a test builds the wheel and the one of a new environment is too old for pyproject.toml.
tools="build hypothesis jupyter onnxruntime pytest pytest-xdist pytorch-metric-learning setuptools"
python -m pip install --quiet --upgrade --constraint "$folder/constraints.txt" '.[tune,onnx,timm,explain,hub]' $tools
python --version
python -m pip list
python -m pip check

# The notebooks run in Jupyter, for want of nbdev (see above); the tutorials and the rest, which call the same functions, are left to
# .ci/run, and so are the tests of the site (a browser), of how notebooks read, of nbdev's runner, and of the benchmarks.
failed=()
total=0
try() {
  echo "== $*"
  total=$((total + 1))
  "$@" || failed+=("$*")
}
for notebook in nbs/api/*.ipynb nbs/api/*/*.ipynb; do try jupyter execute --timeout=1200 "$notebook"; done
for tests in tests/test_*.py tests/*/test_*.py; do
  case $tests in
    */test_site.py | */test_check_notebooks.py | */test_notebooks.py | */test_benchmarks.py) ;;
    *) try pytest --full "$tests" ;;
  esac
done

python - "$which" "$total" "${failed[@]}" <<'PYTHON'
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

which, total, failed = sys.argv[1], int(sys.argv[2]), [command.split()[-1] for command in sys.argv[3:]]
names = "torch torchvision fastai scikit-learn matplotlib filelock accelerate safetensors optuna timm captum huggingface_hub onnx onnxscript numpy pandas pillow fastcore"
versions = dict(Python=platform.python_version()) | {name: version(name) for name in names.split()}
path = Path("benchmarks/results/compatibility.json")
record = json.loads(path.read_text()) if path.exists() else {}
record[which] = dict(versions=versions, passed=total - len(failed), failed=failed)
path.write_text(json.dumps(record, indent=1) + "\n")
PYTHON
if ((${#failed[@]})); then printf 'failed: %s\n' "${failed[@]}"; fi
echo "$((total - ${#failed[@]})) passed, ${#failed[@]} failed"
((${#failed[@]} == 0))
