#!/usr/bin/env bash
# Installs the project with its test extra and runs the test suite on the CPU with 8 forced host devices.
#   bash launch/test.sh                 the default suite
#   bash launch/test.sh -m long         longer runs, kills and compilations
#   bash launch/test.sh -m slow         the minutes-long rest
#   bash launch/test.sh tests/ops -x    anything else pytest takes
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/python.sh
python -m pip install --quiet --editable '.[test]'
# A process per core, and a test file's tests in one process: they share fixtures and programs.
python -m pytest -n logical --maxprocesses 8 --dist loadfile "$@"
