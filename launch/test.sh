#!/usr/bin/env bash
# Installs the project with its test extra and runs the test suite on the CPU with 8 forced host devices.
#   bash launch/test.sh                 the default suite
#   bash launch/test.sh -m slow         the minutes-long rest
#   bash launch/test.sh tests/ops -x    anything else pytest takes
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/python.sh
python -m pip install --quiet --editable '.[test]'
export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=8"
python -m pytest "$@"
