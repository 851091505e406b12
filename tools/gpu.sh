#!/usr/bin/env bash
# Tests and measures the package on the CUDA devices of this machine, in at most ten minutes; the installation before that is extra:
#     bash tools/gpu.sh [--here]
# Builds an environment in a temporary folder (about 6 GB) from the extra `dev`; with --here the Python in use is taken as it is.
# 1. tests/test_gpu.py: losses against float64 on the CPU, fused against plain, autocast, both stages, resuming, every GPU by NCCL,
#    data larger than the memory, torch.compile. 2. benchmarks/gpu.py, which writes benchmarks/results/gpu.json.
# Without a CUDA device it lists the tests and the measurements and skips them all, with exit code 0.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# == 0 || ($# == 1 && $1 == --here) ]] || { echo "usage: $0 [--here]" >&2; exit 2; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} MPLBACKEND=Agg PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
tests=(python -m pytest -n0 --full -m gpu -rs tests/test_gpu.py)
benchmark=(python -W ignore benchmarks/gpu.py)

missing=
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --list-gpus; then
  missing="nvidia-smi finds none"
elif [[ ${CUDA_VISIBLE_DEVICES-all} =~ ^(-1|NoDevFiles|)$ ]]; then
  missing="CUDA_VISIBLE_DEVICES='$CUDA_VISIBLE_DEVICES' hides them all"
fi
if [[ $missing ]]; then
  echo "no CUDA device, $missing: every test and measurement is skipped, nothing is installed, no record is written"
  if python -c "import asymcl, pytest, xdist, pytorch_metric_learning" 2>/dev/null; then
    echo "skipped tests:"
    "${tests[@]}" --collect-only -q --disable-warnings
    echo "skipped measurements:"
    "${benchmark[@]}" --list
  else
    echo "skipped: tests/test_gpu.py and benchmarks/gpu.py, whose parts are listed where the extra dev is installed"
  fi
  exit 0
fi

if [[ $# == 0 ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m venv "$work/venv"
  . "$work/venv/bin/activate"
  python -m pip install --quiet '.[dev]'
fi
if ! python -W ignore -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  echo "PyTorch $(python -c 'import torch; print(torch.__version__, "for CUDA", torch.version.cuda)') finds no CUDA device" \
    "with driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n1) and" \
    "CUDA_VISIBLE_DEVICES='${CUDA_VISIBLE_DEVICES-}': nothing is tested or measured" >&2
  exit 1
fi

failed=0
within() { # TIME REST COMMAND...: runs the command for so long; REST is what is skipped when the time is over
  local code=0
  timeout -k 10 "$1" "${@:3}" || code=$?
  if ((code == 124 || code == 137)); then echo "skipped for want of time: $2"; fi
  if ((code)); then failed=$code; fi
}
SECONDS=0
echo "== tests, at most 270 seconds"
within 270 "the rest of the last test above, and the tests after it" "${tests[@]}" -v
left=$((580 - SECONDS))
echo "== benchmarks, at most $left seconds"
within "$left" "what the last line above names, and what gpu.json lists under skipped" \
  "${benchmark[@]}" --seconds $((left - 60)) --out benchmarks/results/gpu.json
exit "$failed"
