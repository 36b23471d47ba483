#!/usr/bin/env bash
# Builds the documentation's site into build/docs from docs/, the package's docstrings, the config's
# keys and every command's --help. Warnings are errors. Nothing is fetched but the docs extra.
#   bash launch/docs.sh            build/docs/index.html
#   bash launch/docs.sh serve      a page at http://127.0.0.1:8000/ that follows every change
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/python.sh
if ! python -c 'import material, mkdocstrings_handlers.python' 2>/dev/null; then
  python -m pip install --quiet --editable '.[docs]'
fi
export JAX_PLATFORMS=cpu PYTHONPATH=. NO_MKDOCS_2_WARNING=1
if [ "${1:-}" = serve ]; then
  python -m mkdocs serve "${@:2}"
else
  python -m mkdocs build --strict "$@"
fi
