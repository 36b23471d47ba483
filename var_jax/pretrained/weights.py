"""Readers of published weights, which check every key and shape and fold batch norm away."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from var_jax.errors import UserError
from var_jax.io.finite import require_finite
from var_jax.io.state_dicts import unwrapped

Layer = dict[str, np.ndarray]  # of "kernel" and "bias"
BYTES_AT_ONCE = 2**20


class State:
    """A state dict whose keys a reader takes one by one, each with the shape that it must have.

    Call `finish` at the end, which raises if a key is left.

    Args:
      tensors: {key: array}, or a `torch_file.Tensors`.
      name: its name in messages, such as its path.
      anchors: keys that every such state dict has, which find it below wrappers and containers.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], name: str, anchors: Sequence[str] = ()):
        self.name = name
        self._tensors, self._names = tensors, unwrapped(tensors, anchors, name)
        self._left = set(self._names)

    def __contains__(self, key: str) -> bool:
        return key in self._names

    def take(self, key: str, *shape: int | None) -> np.ndarray:
        """Returns the float32 array of a key.

        Args:
          key: its published name.
          shape: the shape that it must have; None stands for any size.
        Raises:
          UserError: there is no such key, or the array has another shape or values that are not
            finite.
        """
        if key not in self._names:
            raise UserError(f"{self.name}: there is no {key}; these are weights of another network")
        array = np.asarray(self._tensors[self._names[key]], np.float32)
        if array.ndim != len(shape) or any(
            n not in (None, m) for n, m in zip(shape, array.shape, strict=True)
        ):
            right = " x ".join("any" if n is None else str(n) for n in shape)
            raise UserError(f"{self.name}: {key} has the shape {array.shape}; it must be {right}")
        require_finite([(key, array)], self.name)
        self._left.discard(key)
        return array

    def linear(self, key: str, inputs: int | None = None, outputs: int | None = None) -> Layer:
        """Returns a linear layer's (inputs, outputs) kernel and (outputs,) bias."""
        weight = self.take(f"{key}.weight", outputs, inputs)
        return {
            "kernel": np.ascontiguousarray(weight.T),
            "bias": self.take(f"{key}.bias", len(weight)),
        }

    def conv(self, key: str, *shape: int | None) -> Layer:
        """Returns a convolution's HWIO kernel and its bias.

        Args:
          key: its published name.
          shape: PyTorch's (out, in, height, width).
        """
        weight = self.take(f"{key}.weight", *shape)
        return {"kernel": hwio(weight), "bias": self.take(f"{key}.bias", len(weight))}

    def conv_norm(self, conv: str, norm: str, *shape: int | None, eps: float) -> Layer:
        """Returns a convolution without a bias and the batch norm after it, folded in float64."""
        weight = self.take(f"{conv}.weight", *shape).astype(np.float64)
        gamma, beta, mean, var = (
            self.take(f"{norm}.{part}", len(weight)).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(var + eps)
        return {
            "kernel": hwio(weight * scale[:, None, None, None]),
            "bias": (beta - mean * scale).astype(np.float32),
        }

    def finish(self, *ignored: str):
        """Checks that no key is left.

        Args:
          ignored: beginnings and endings of keys that may be left.
        Raises:
          UserError: another key is left.
        """
        left = sorted(
            key for key in self._left if not key.startswith(ignored) and not key.endswith(ignored)
        )
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise UserError(
                f"{self.name}: unknown key {left[0]}{more}; these are weights of another network"
            )


def zeros(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns a state dict of zeros of some shapes, for programs that are compiled and not run."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def hwio(weight: np.ndarray) -> np.ndarray:
    """Returns PyTorch's convolution weights (out, in, height, width) as HWIO."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0), np.float32)


def fingerprint(path: str) -> str:
    """Returns the first 12 hexadecimal digits of a file's SHA-256.

    Reports name weights by them.

    Raises:
      UserError: the file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with epath.Path(path).open("rb") as file:
            while chunk := file.read(BYTES_AT_ONCE):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{path}: there is no such file, or it cannot be read") from error
    return digest.hexdigest()[:12]
