#!/usr/bin/env bash
# From a bare Python >= 3.11 to a trained VAR: installs into .venv (or the active environment), trains tokenizer and
# transformer on 32x32 digits, samples a labeled grid, and prints a short report. Interrupted, it resumes.
#   bash launch/quickstart.sh                                              runs/quickstart, minutes on two cores
#   bash launch/quickstart.sh configs/fashion_mnist.py runs/fashion_mnist  another config and workdir
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/python.sh
python -m pip install --quiet --editable .
python -m var_jax quickstart --config "${1:-configs/digits.py}" --workdir "${2:-runs/quickstart}" "${@:3}"
