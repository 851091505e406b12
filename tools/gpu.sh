#!/usr/bin/env bash
# Tests and measures the package on the CUDA devices of this machine, in at most ten minutes after the installation:
#     bash tools/gpu.sh [--here]
# Builds an environment in a temporary folder (about 6 GB) from the extra `dev`; with --here the Python in use is taken as it is.
# 1. tests/test_gpu.py: losses against float64 on the CPU, fused against plain, autocast, both stages, resuming, every GPU by NCCL,
#    data larger than the memory, torch.compile. 2. benchmarks/gpu.py, which writes benchmarks/results/gpu.json.
# Without a CUDA device it lists the tests and skips everything, with exit code 0.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# == 0 || ($# == 1 && $1 == --here) ]] || { echo "usage: $0 [--here]" >&2; exit 2; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} MPLBACKEND=Agg PIP_DISABLE_PIP_VERSION_CHECK=1
tests=(python -m pytest -n0 --full -m gpu -rs tests/test_gpu.py)

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --list-gpus; then
  echo "no CUDA device: every test and benchmark is skipped, nothing is installed, no record is written"
  for part in "tests of tests/test_gpu.py" "benchmarks/gpu.py: losses, training, memory"; do
    echo "skipped: $part"
  done
  if python -c "import asymcl, pytest, xdist" 2>/dev/null; then "${tests[@]}" -q; fi
  exit 0
fi

if [[ $# == 0 ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m venv "$work/venv"
  . "$work/venv/bin/activate"
  python -m pip install --quiet '.[dev]'
fi
python -c "import torch; assert torch.cuda.is_available(), 'this PyTorch finds no CUDA device'"

failed=0
echo "== tests, at most 4 minutes"
timeout 240 "${tests[@]}" || failed=$?
if ((failed == 124)); then echo "skipped: the tests after the last one above, for want of time"; fi
echo "== benchmarks, at most 5 minutes"
timeout 330 python -W ignore benchmarks/gpu.py --seconds 240 --out benchmarks/results/gpu.json || failed=$?
exit "$failed"
