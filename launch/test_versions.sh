#!/usr/bin/env bash
# Runs the tests in a throw-away environment: on the oldest Python with the lowest versions that setup.cfg allows, or on
# a newer Python with the newest versions that the registry has.
#   bash launch/test_versions.sh lowest                the default suite on Python 3.11
#   bash launch/test_versions.sh newest                the default suite on Python 3.13
#   bash launch/test_versions.sh lowest tests/ops      anything else pytest takes
# uv looks for that Python, and fetches it where the machine lacks it; PYTHON=/path/to/python names another. What was
# installed is printed first.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  lowest) python=3.11 resolution=lowest-direct ;;
  newest) python=3.13 resolution=highest ;;
  *) echo "name the versions to install, lowest or newest: bash launch/test_versions.sh lowest" >&2; exit 2 ;;
esac
shift
source launch/python.sh
python -m pip install --quiet uv
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
uv venv --quiet --python "${PYTHON:-$python}" "$environment"
uv pip install --quiet --python "$environment/bin/python" --resolution "$resolution" --editable '.[test]'
"$environment/bin/python" --version
uv pip list --python "$environment/bin/python" --format freeze |
  grep -E '^(jax|jaxlib|flax|optax|orbax-checkpoint|grain|numpy|scipy|tensorflow-datasets|ml-collections)=='
# Every module is imported once: a test file that is left out would hide one that fails.
"$environment/bin/python" -c 'import pkgutil, importlib, var_jax
for module in pkgutil.walk_packages(var_jax.__path__, "var_jax."):
    if module.name != "var_jax.__main__":
        importlib.import_module(module.name)'
"$environment/bin/python" -m pytest -n logical --maxprocesses 8 --dist loadfile "$@"
