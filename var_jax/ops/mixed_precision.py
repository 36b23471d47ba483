"""Products with weights that compute in one dtype and sum the weights' gradients in another.

In bfloat16, autodiff gives a weight's gradient in bfloat16, and devices sum it in bfloat16, because
a cotangent has the dtype of its primal. The published code sums in float32. These products take the
float32 weight itself, so that the sums over the rows of one device and over devices can both be
float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from var_jax.devices import gathering, target
from var_jax.ops import cpu_matmul

if TYPE_CHECKING:
    from jaxtyping import Array, Float

LETTERS = "abcdefg"
LAYOUT = ("NHWC", "HWIO", "NHWC")


def product(
    spec: str,
    x: Float[Array, ...],
    kernel: Float[Array, ...],
    dtype: jnp.dtype,
    gradient_dtype: jnp.dtype,
    *,
    wide: bool = False,
    names: Sequence[str | None] = (),
) -> Float[Array, ...]:
    """Returns the einsum of activations and a weight, computed in `dtype`.

    The gradient of the weight is summed in `gradient_dtype`; the gradient of the activations, and
    the cotangent that both are computed from, are of `dtype`.

    Args:
      spec: such as "blw,wv->blv", in which each letter stands in two of the three terms; the
        letters that are summed over end x and begin the kernel, in the same order.
      wide: whether the result is float32.
      names: the kernel's logical axis names, for a kernel whose parts are brought together by the
        policy that is set (`devices.gathering`).
    """
    out = jnp.dtype(jnp.float32) if wide else jnp.dtype(dtype)
    plan = gathering.plan(names, kernel.shape, x.shape[0])
    if plan is not None:
        dtypes = (jnp.dtype(dtype), jnp.dtype(gradient_dtype), out, kernel.dtype)
        return _gathered_product(x.astype(dtype), kernel, spec, dtypes, plan)
    if dtype == jnp.float32:
        einsum = cpu_matmul.einsum if target.is_single_cpu() else jnp.einsum
        return einsum(spec, x.astype(dtype), kernel.astype(dtype))
    return _product(x.astype(dtype), kernel, spec, jnp.dtype(dtype), jnp.dtype(gradient_dtype), out)


def last_axis_spec(rank: int, outputs: int) -> str:
    """Returns the spec of a product over the last axis of x, which `outputs` dimensions replace.

    Args:
      rank: number of dimensions of `x`.
      outputs: number of dimensions in place of the last one.
    """
    rows, new = LETTERS[: rank - 1], "uvw"[:outputs]
    return f"{rows}z,z{new}->{rows}{new}"


# The forward rules below do not call the function with the custom gradient: a policy of
# rematerialization such as "dots" looks for products in them, and sees none within another one.
def _einsum(x, kernel, spec, dtype, gradient_dtype, out):
    return jnp.einsum(spec, x, kernel.astype(dtype), preferred_element_type=out)


_product = jax.custom_vjp(_einsum, nondiff_argnums=(2, 3, 4, 5))


def _product_forward(x, kernel, *settings):
    return _einsum(x, kernel, *settings), (x, kernel)


def _product_backward(spec, dtype, gradient_dtype, out, operands, cotangent):
    x, kernel = operands
    cotangent = cotangent.astype(dtype)
    d_kernel = _kernel_gradient(spec, x, cotangent, gradient_dtype)
    return _input_gradient(spec, cotangent, kernel.astype(dtype)), d_kernel.astype(kernel.dtype)


class _Axes(NamedTuple):
    """The letters of x, of the kernel and of the result in a product's spec."""

    x: str
    kernel: str
    result: str


def _axes(spec: str) -> _Axes:
    terms, result = spec.split("->")
    x, kernel = terms.split(",")
    return _Axes(x, kernel, result)


def _input_gradient(spec, cotangent, kernel):
    axes = _axes(spec)
    return jnp.einsum(f"{axes.result},{axes.kernel}->{axes.x}", cotangent, kernel)


def _kernel_gradient(spec, x, cotangent, gradient_dtype):
    axes = _axes(spec)
    # On a CPU some products of bfloat16 with float32 results compile and then fail to run.
    if target.platform() == "cpu":
        x, cotangent = x.astype(gradient_dtype), cotangent.astype(gradient_dtype)
    return jnp.einsum(
        f"{axes.x},{axes.result}->{axes.kernel}",
        x,
        cotangent,
        preferred_element_type=gradient_dtype,
    )


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _gathered_product(x, kernel, spec, dtypes, plan):
    dtype, _, out, _ = dtypes
    return _einsum(x, plan.gather(kernel.astype(dtype)), spec, dtype, None, out)


def _gathered_forward(x, kernel, spec, dtypes, plan):
    dtype, _, out, _ = dtypes
    weight = checkpoint_name(plan.gather(kernel.astype(dtype)), gathering.GATHERED)
    return _einsum(x, weight, spec, dtype, None, out), (x, weight)


def _gathered_backward(spec, dtypes, plan, operands, cotangent):
    (x, weight), (dtype, gradient_dtype, _, stored) = operands, dtypes
    cotangent = cotangent.astype(dtype)
    axes = _axes(spec)
    d_kernel = plan.divided_sum(
        lambda x, cotangent: _kernel_gradient(spec, x, cotangent, gradient_dtype),
        (axes.x, axes.result, axes.kernel),
        (x, cotangent),
    )
    return _input_gradient(spec, cotangent, weight), d_kernel.astype(stored)


_gathered_product.defvjp(_gathered_forward, _gathered_backward)


def add_bias(
    x: Float[Array, ...], bias: Float[Array, ...], gradient_dtype: jnp.dtype
) -> Float[Array, ...]:
    """Returns x plus a bias over its last dimensions, in the dtype of x.

    The bias's gradient is summed in `gradient_dtype`.
    """
    if x.dtype == jnp.float32:
        return x + bias.astype(x.dtype)
    return _add_bias(x, bias, jnp.dtype(gradient_dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _add_bias(x, bias, gradient_dtype):
    return x + bias.astype(x.dtype)


def _bias_forward(x, bias, gradient_dtype):
    return x + bias.astype(x.dtype), bias


def _bias_backward(gradient_dtype, bias, cotangent):
    rows = tuple(range(cotangent.ndim - bias.ndim))
    return cotangent, jnp.sum(cotangent, axis=rows, dtype=gradient_dtype).astype(bias.dtype)


_add_bias.defvjp(_bias_forward, _bias_backward)


def convolution(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "y x i o"],
    strides: tuple[int, int],
    padding,
    dtype: jnp.dtype,
    gradient_dtype: jnp.dtype,
) -> Float[Array, "b H W o"]:
    """Returns the convolution of maps with a kernel, computed in `dtype`.

    The kernel's gradient is computed in `gradient_dtype`, from operands of `dtype`. Every device
    has the kernel whole, in `dtype`.
    """
    x = x.astype(dtype)
    if dtype == jnp.float32:
        return convolve(x, gathering.undivided(kernel.astype(dtype)), strides, padding)
    return _convolution(x, kernel, strides, padding, jnp.dtype(gradient_dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution(x, kernel, strides, padding, gradient_dtype):
    return convolve(x, gathering.undivided(kernel.astype(x.dtype)), strides, padding)


def _convolution_forward(x, kernel, strides, padding, gradient_dtype):
    return convolve(x, gathering.undivided(kernel.astype(x.dtype)), strides, padding), (x, kernel)


def _convolution_backward(strides, padding, gradient_dtype, operands, cotangent):
    x, kernel = operands
    narrow_kernel, wide_x = gathering.undivided(kernel.astype(x.dtype)), x.astype(gradient_dtype)
    (d_x,) = jax.vjp(lambda x: convolve(x, narrow_kernel, strides, padding), x)[1](cotangent)
    _, kernel_vjp = jax.vjp(
        lambda k: convolve(wide_x, k, strides, padding), narrow_kernel.astype(gradient_dtype)
    )
    (d_kernel,) = kernel_vjp(cotangent.astype(gradient_dtype))
    return d_x, gathering.undivided(d_kernel).astype(kernel.dtype)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "y x i o"],
    strides: tuple[int, int],
    padding: str | tuple,
) -> Float[Array, "b H W o"]:
    """Returns the plain convolution of maps with a kernel of their dtype."""
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)
