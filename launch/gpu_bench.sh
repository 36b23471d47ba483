#!/usr/bin/env bash
# Measures training, generation and the tokenizer on one GPU in under nine minutes, the most telling rows first; see
# `python launch/gpu_bench.py --help`. Where nothing can be downloaded, it says which wheels to bring.
#   bash launch/gpu_bench.sh                                       all rows, into docs/results/bench/GPU.json
#   JAX_PLATFORMS=cpu bash launch/gpu_bench.sh --small --out F     tries the script on a CPU
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92} # JAX alone uses the card
exec "${PYTHON:-python3}" launch/gpu_bench.py "$@"
