"""SIGTERM, as clusters send it before they take a machine: every host stops after one agreed step.

JAX's own SIGTERM notifier and a Python handler replace one another, and its notice reaches only the hosts of one
job manager: the handler here takes the signal of one host, and a vote in the step loop tells all the others.
"""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

NOTICE = b"var-jax: SIGTERM: saving and stopping after this step; a second signal stops at once\n"


class Preemption:
    """Notices SIGTERM while the block lasts (in the main thread; elsewhere Python takes no signals).

    Attributes:
      told: whether this host was told to stop.
    """

    def __init__(self, mesh: Mesh):
        self.told = False
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._before = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def vote(self) -> jax.Array | bool:
        """Whether any host has been told to stop by now, the same on every host; several hosts do not wait for it
        here, but where they read it."""
        if jax.process_count() == 1:
            return self.told
        flags = jax.make_array_from_callback(
            (self._sharding.num_devices,), self._sharding, lambda _: np.array([self.told]))
        return self._any(flags)

    def _tell(self, number: int, frame):
        self.told = True
        os.write(2, NOTICE)
        signal.signal(number, signal.SIG_DFL)
