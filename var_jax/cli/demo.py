"""Serves a local web page that generates images, coarse to fine, and edits them under a mask.

example:
  var-jax demo --model runs/quickstart
  var-jax demo --model models/d16 --dtype bfloat16 --port 8000

It needs the extra: pip install 'var-jax[demo]'. Only this machine can open the page, unless --host
is another address of it (0.0.0.0 is all of them): then everyone who can reach that address can use
it, without a password. Nothing is sent anywhere. Ctrl-C ends it.
"""

import argparse
import errno
import os
import signal
import socket
import threading
import time
from pathlib import PurePath

from var_jax.cli import models
from var_jax.cli.adapters import add_adapter_argument
from var_jax.cli.sample import add_dtype_argument, load
from var_jax.config.strict import require
from var_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="model directory or training workdir; its data.json, if it has one, names the classes",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address of this machine to serve at (default 127.0.0.1)",
    )
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default 7860)")
    add_adapter_argument(parser)
    add_dtype_argument(parser)


def run(args: argparse.Namespace) -> int:
    require(1 <= args.port <= 65535, "--port", args.port, "from 1 to 65535")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError(
            "the page needs the package gradio; install it by pip install 'var-jax[demo]'"
        ) from error
    _check_free(args.host, args.port)

    from var_jax.demo import server, session

    models.fetch(args)
    model = load(args.model, args.dtype, args.adapter)
    classes = session.class_choices(model.config, model.class_names)
    print("compiling, once ...", flush=True)
    began = time.perf_counter()
    session.warm_up(model, session.Choices(classes[0][1]))
    print(f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its files are removed then, too
    try:
        path = args.addresses.get("model") or os.path.abspath(args.model)
        name = PurePath(path).name
        with server.serving(model, classes, name, args.host, args.port) as address:
            print(f"ready at {address} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("ended", flush=True)
    return 0


def _check_free(host: str, port: int):
    """Raises UserError unless a server may listen there; call it before a model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port} is in use on {host}; give another one") from error
        if error.errno == errno.EACCES:
            raise UserError(f"--port {port} is reserved; give one from 1024 on") from error
        raise UserError(
            f"--host {host!r} is no address of this machine; give 127.0.0.1, or 0.0.0.0 for all of "
            "them"
        ) from error
