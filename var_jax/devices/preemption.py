"""SIGTERM, as clusters send it before they take a machine: every host stops after one agreed step.

JAX's own SIGTERM notifier and a Python handler replace one another, and its notice reaches only the
hosts of one job manager: the handler here takes the signal of one host, and a vote in the step loop
tells all the others.
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
COMPILATION = "compilation of a program that may be given up"
NOTICE = b"var-jax: SIGTERM: saving and stopping after this step; a second signal stops at once\n"


class Told(Exception):
    """A host was told to stop, while work went on that a resumed run can make up."""


def compiling() -> bool:
    """Returns whether a compilation that was given up still goes on.

    The exit of the interpreter waits for it, which the notice of a preemption leaves no time for.
    """
    return any(thread.name == COMPILATION for thread in threading.enumerate())


class Preemption:
    """Notices SIGTERM while the block lasts (in the main thread; elsewhere Python takes no
    signals).

    Attributes:
      told: whether this host was told to stop.
    """

    def __init__(self, mesh: Mesh):
        self.told = False
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(
            lambda flags: jnp.any(flags, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec())
        )
        self._before = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def vote(self) -> jax.Array | bool:
        """Whether any host has been told to stop by now, the same on every host; several hosts do
        not wait for it here, but where they read it."""
        return self.told if jax.process_count() == 1 else self._of_any_host(np.array([self.told]))

    def check(self):
        """Raises Told on every host when any has been told to stop; each has to ask."""
        if bool(self.vote()):
            raise Told

    def compiled(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """Returns the compiled program, unless a host is told to stop before it is there.

        Compilation takes minutes for a large model, in which Python hears no signal: it goes on in
        a thread of its own, which is left to itself where its program is not wanted any more. The
        interpreter waits for that thread at its exit, unless whoever ends it asks `compiling`.

        Raises:
          Told: on every host alike.
        """
        found: list[Any] = []

        def work():
            try:
                found.append(lowered.compile())
            except BaseException as error:
                found.append(error)

        thread = threading.Thread(target=work, name=COMPILATION)
        thread.start()
        while True:
            thread.join(POLL_SECONDS)
            told, at_work = self.told, thread.is_alive()
            if jax.process_count() > 1:  # none may stop to ask before all of them do
                told, at_work = np.asarray(self._of_any_host(np.array([[told, at_work]]))).tolist()
            if told:
                raise Told
            if not at_work:
                break
        [result] = found
        if isinstance(result, BaseException):
            raise result
        return result

    def _of_any_host(self, flags: np.ndarray) -> jax.Array:
        """Returns of each flag whether any host has it set; nobody waits for it here.

        Args:
          flags: this host's, as one row.
        """
        shape = (self._sharding.num_devices, *flags.shape[1:])
        return self._any(jax.make_array_from_callback(shape, self._sharding, lambda _: flags))

    def _tell(self, number: int, frame):
        self.told = True
        os.write(2, NOTICE)
        signal.signal(number, signal.SIG_DFL)
