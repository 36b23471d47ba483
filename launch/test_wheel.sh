#!/usr/bin/env bash
# Builds the wheel and the sdist, installs them into fresh environments away from the checkout, and uses them there: both
# stages of the quickstart in a few steps, with its config found by name, samples, a fit, and the demo's page. Each
# extra is installed too, in an environment of its own, for the first interpreter; for the others it is checked that
# every package it needs exists.
#   bash launch/test_wheel.sh                      with this Python
#   bash launch/test_wheel.sh /path/to/python ...  with each of these; the sdist with the first one only
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
source launch/python.sh
python -m pip install --quiet build uv
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m build --outdir "$work/dist" . > "$work/build.log" || { cat "$work/build.log"; exit 1; }
[ $# -gt 0 ] || set -- "$(command -v python)"

use() { # interpreter, package, "install" or "resolve" for the extras
  local environment
  environment=$(mktemp -d -p "$work")
  echo "$("$1" --version), $(basename "$2")"
  uv venv --quiet --python "$1" "$environment/venv"
  uv pip install --quiet --python "$environment/venv/bin/python" "$2[demo]"
  for extra in $("$environment/venv/bin/python" -c 'from importlib.metadata import metadata
print(*metadata("var-jax").get_all("Provides-Extra"))'); do
    if [ "$3" = install ]; then
      uv venv --quiet --python "$1" "$environment/$extra"
      uv pip install --quiet --python "$environment/$extra/bin/python" "$2[$extra]"
      uv pip check --quiet --python "$environment/$extra/bin/python"
      (cd / && env -u PYTHONPATH "$environment/$extra/bin/var-jax" --version)
      rm -r "${environment:?}/$extra"
      echo "[$extra] is installed"
    else
      uv pip install --quiet --dry-run --python "$environment/venv/bin/python" "$2[$extra]"
      echo "[$extra] can be installed"
    fi
  done
  mkdir "$environment/elsewhere"
  cd "$environment/elsewhere"
  PATH=$environment/venv/bin:$PATH
  unset PYTHONPATH
  python -c 'import sys, var_jax; sys.exit(var_jax.__file__.startswith(sys.argv[1]))' "$checkout"
  var-jax quickstart --config digits --config.steps=4 --config.eval_every=4 --workdir quickstart --samples 20
  var-jax sample --model quickstart --labels 0-9 --num 10 --out samples.png
  python -c 'print("run,params,compute,loss")
for i in range(6):
    print(f"r{i},{1e5 * 2**i},{1e14 * 2**i},{2 + 60 * (1e5 * 2**i)**-0.4}")' > runs.csv
  var-jax fit runs.csv --out fits --resamples 20
  var-jax demo --model quickstart --port 7871 & demo=$!
  until (exec 3<> /dev/tcp/127.0.0.1/7871) 2> /dev/null; do # once its programs are compiled
    kill -0 "$demo" || { echo "the demo ended before it had a page" >&2; exit 1; }
    sleep 1
  done
  python -c 'import urllib.request as u; print("the page has", len(u.urlopen("http://127.0.0.1:7871").read()), "bytes")'
  kill "$demo"
  wait "$demo" || true
}

extras=install
(use "$1" "$work"/dist/*.tar.gz resolve)
for interpreter in "$@"; do
  (use "$interpreter" "$work"/dist/*.whl $extras)
  extras=resolve
done
