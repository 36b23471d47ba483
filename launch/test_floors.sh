#!/usr/bin/env bash
# Installs the lowest versions that setup.cfg allows into a throw-away environment, and runs there a short selection of
# tests that reaches every library: parity, training, checkpoints, weights of other programs, data.
#   bash launch/test_floors.sh              the selection
#   bash launch/test_floors.sh tests/ops    anything else pytest takes
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/python.sh
python -m pip install --quiet uv
floors=$(mktemp -d)
trap 'rm -rf "$floors"' EXIT
uv venv --quiet --python "$(command -v python)" "$floors"
uv pip install --quiet --python "$floors/bin/python" --resolution lowest-direct --editable '.[slurm,jobset]' 'pytest>=8'
export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=8"
"$floors/bin/python" -c 'import pkgutil, importlib, var_jax
for module in pkgutil.walk_packages(var_jax.__path__, "var_jax."):
    if module.name != "var_jax.__main__":
        importlib.import_module(module.name)'
[ $# -gt 0 ] || set -- tests/test_parity.py tests/io/test_torch_convert.py tests/io/test_checkpoint.py tests/data/test_sources.py \
  tests/train/test_metrics.py tests/train/test_loop.py::test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit
"$floors/bin/python" -m pytest "$@"
