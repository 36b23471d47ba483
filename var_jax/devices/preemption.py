"""Preemption: clusters send SIGTERM before they take a machine, and every host stops after one step
that all agree on.

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

POLL_SECONDS = 0.5
COMPILATION_THREAD = "compilation of a program that may be given up"
NOTICE = b"var-jax: SIGTERM: saving and stopping after this step; a second signal stops at once\n"


class StopRequested(Exception):
    """A host received SIGTERM during work that a resumed run does again."""


def is_compiling() -> bool:
    """Returns whether a compilation that was given up still goes on.

    The interpreter waits for it at its exit, and a preemption's notice leaves no time for that.
    """
    return any(thread.name == COMPILATION_THREAD for thread in threading.enumerate())


class Preemption:
    """Notices SIGTERM inside its `with` block.

    It takes signals in the main thread alone; in others Python allows no handler.

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

        Hosts do not wait for each other here, but where they read the result.
        """
        if jax.process_count() == 1:
            return self.requested
        return self._any_host(np.array([self.requested]))

    def check(self):
        """Raises StopRequested on every host when any has received SIGTERM; every host has to
        call it."""
        if bool(self.vote()):
            raise StopRequested

    def compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """Returns the compiled program, unless a host receives SIGTERM first.

        Compilation of a large model takes minutes, in which Python handles no signal. So it runs in
        a thread of its own, which goes on alone once its program is no longer needed. The
        interpreter waits for that thread at its exit; a command that has to end sooner asks
        `is_compiling`.

        Raises:
          StopRequested: on every host alike.
        """
        outcome: list[Any] = []

        def work():
            try:
                outcome.append(lowered.compile())
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
          flags: this host's, as one row.
        """
        shape = (self._sharding.num_devices, *flags.shape[1:])
        return self._any(jax.make_array_from_callback(shape, self._sharding, lambda _: flags))

    def _on_signal(self, number: int, frame):
        self.requested = True
        os.write(2, NOTICE)
        signal.signal(number, signal.SIG_DFL)
