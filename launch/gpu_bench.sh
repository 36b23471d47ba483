#!/usr/bin/env bash
# Measures training, generation and the tokenizer on one GPU, the most telling rows first, and stops after 8.5 minutes:
# the same command goes on. See `python launch/gpu_bench.py --help`. Where nothing can be downloaded, it says which wheels
# to bring.
#   bash launch/gpu_bench.sh                                       all rows, into docs/results/bench/GPU.json
#   JAX_PLATFORMS=cpu bash launch/gpu_bench.sh --small --out F     tries the script on a CPU
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92} # JAX alone uses the card
exec "${PYTHON:-python3}" launch/gpu_bench.py "$@"
