"""Preemption: after a SIGTERM to one host, all hosts stop after the same step.

Clusters send SIGTERM before they reclaim a machine.

JAX's own SIGTERM notifier and a Python handler replace one another, and its notice reaches only the
hosts of one job manager. Here a handler takes the signal of one host, and a vote in the training
loop passes it on to all others.
"""

import os
import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.devices.cpu_compiler import Options

POLL_SECONDS = 0.5
COMPILATION_THREAD = "compilation of a program that may be given up"
NOTICE = b"var-jax: SIGTERM: saving and stopping after this step; a second signal stops at once\n"


class StopRequested(Exception):
    """A host received SIGTERM during work that a resumed run repeats."""


def is_compiling() -> bool:
    """Returns whether a `Preemption.compile` thread is still running, abandoned or not.

    The interpreter joins it at exit, which can take longer than a preempted process has left.
    """
    return any(thread.name == COMPILATION_THREAD for thread in threading.enumerate())


class Preemption:
    """Records SIGTERM inside its `with` block, and lets all hosts agree to stop.

    It catches the signal only in the main thread, the only one where Python allows a handler.

    Attributes:
      requested: whether this host received SIGTERM.
    """

    def __init__(self, mesh: Mesh):
        self.requested = False
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(
            lambda flags: jnp.any(flags, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec())
        )
        self._previous_handler = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_):
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def vote(self) -> jax.Array | bool:
        """Returns whether any host has received SIGTERM, the same on every host.

        Every host must call it. The call itself does not wait for the other hosts; reading the
        result does.
        """
        if jax.process_count() == 1:
            return self.requested
        return self._any_host(np.array([self.requested]))

    def check(self):
        """Raises StopRequested on every host if any has received SIGTERM; all must call it."""
        if bool(self.vote()):
            raise StopRequested

    def compile(
        self, lowered: jax.stages.Lowered, options: Options | None = None
    ) -> jax.stages.Compiled:
        """Returns the compiled program, unless a host receives SIGTERM first.

        Compilation of a large model takes minutes, during which Python runs no signal handler, so
        it runs in its own thread. If the program is abandoned, that thread keeps running. The
        interpreter waits for it at exit; a command that has to end sooner checks `is_compiling`.

        Args:
          options: options of the compiler beside those that the program was lowered with.
        Raises:
          StopRequested: a host received SIGTERM (on every host).
        """
        outcome: list[Any] = []

        def work():
            try:
                outcome.append(lowered.compile(options))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=work, name=COMPILATION_THREAD)
        thread.start()
        while True:
            thread.join(POLL_SECONDS)
            requested, running = self.requested, thread.is_alive()
            if jax.process_count() > 1:  # the hosts stop asking at the same time
                flags = self._any_host(np.array([[requested, running]]))
                requested, running = np.asarray(flags).tolist()
            if requested:
                raise StopRequested
            if not running:
                break
        [result] = outcome
        if isinstance(result, BaseException):
            raise result
        return result

    def _any_host(self, flags: np.ndarray) -> jax.Array:
        """Returns for each flag whether any host has it set, without waiting for the hosts.

        Args:
          flags: this host's flags, as one row.
        """
        shape = (self._sharding.num_devices, *flags.shape[1:])
        return self._any(jax.make_array_from_callback(shape, self._sharding, lambda _: flags))

    def _on_signal(self, number: int, frame):
        self.requested = True
        os.write(2, NOTICE)
        signal.signal(number, signal.SIG_DFL)
