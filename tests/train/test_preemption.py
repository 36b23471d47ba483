"""A notice is heard while a program is compiled, and the process ends without waiting for it."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from var_jax.devices import preemption
from var_jax.devices.preemption import Preemption, StopRequested


class Lowered:
    """Compiles for as long as it is let."""

    def __init__(self):
        self.go_on = threading.Event()

    def compile(self, options):
        self.go_on.wait(60)
        return "program"


@pytest.fixture
def notice():
    with Preemption(Mesh(np.array(jax.devices()[:2]).reshape(2, 1), ("data", "model"))) as result:
        yield result


def test_compile_returns_the_program_or_raises_its_error(notice):
    """The program runs, an error of the compiler is raised as it is, and afterwards nothing counts
    as being compiled."""
    program = notice.compile(jax.jit(lambda x: x + 1).lower(jnp.zeros(2)))
    np.testing.assert_array_equal(program(jnp.ones(2)), [2, 2])

    class Broken:
        def compile(self, options):
            raise ValueError("no such instruction")

    with pytest.raises(ValueError, match="no such instruction"):
        notice.compile(Broken())
    assert not preemption.is_compiling()


def test_compiled_hears_sigterm_at_once(notice):
    """Python hears no signal while its main thread is in the compiler, which may be for minutes."""
    lowered = Lowered()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(StopRequested):
        notice.compile(lowered)
    assert preemption.is_compiling()  # nothing has ended the compilation: it goes on
    lowered.go_on.set()
    until = time.monotonic() + 10
    while preemption.is_compiling() and time.monotonic() < until:
        time.sleep(0.01)
    assert not preemption.is_compiling()


ENDS = """
import signal, sys, time
from var_jax.cli import main
from var_jax.errors import Preempted
from var_jax.devices import preemption
import jax, os, threading
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

class Lowered:
    def compile(self, options):
        jax.jit(deep).lower(jnp.ones((8, 8))).compile()
        time.sleep(100)

def deep(x):
    for i in range(300):
        x = jnp.sin(x @ x) + i
    return x

def work(argv):
    with preemption.Preemption(Mesh(np.array(jax.devices()), "data")) as notice:
        def stop():
            print(time.time(), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Timer(0.5, stop).start()
        try:
            notice.compile(Lowered())
        except preemption.StopRequested:
            raise Preempted("stopped by SIGTERM") from None

main._dispatch = work
sys.exit(main.main([]))
"""


@pytest.mark.long
def test_preempted_process_does_not_wait_for_a_compilation():
    """The compilation takes 100 s, and the process ends within 10 s of the signal."""
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=90)
    ended = time.time()
    assert done.returncode == 75, done.stderr
    assert done.stderr.splitlines()[-1] == "var-jax: stopped by SIGTERM"
    assert ended - float(done.stdout.splitlines()[0]) < 10
