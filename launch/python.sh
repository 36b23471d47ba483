# Sourced by the other scripts: the active virtual environment, or .venv, made when it is not there.
# PYTHON names the interpreter it is made with.
if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      { echo "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python" >&2; exit 2; }
    "${PYTHON:-python3}" -m venv .venv
  fi
  source .venv/bin/activate
fi
