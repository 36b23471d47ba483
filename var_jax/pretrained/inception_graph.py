"""Inception v3 in the frozen TensorFlow graph of 2015-12-05 that the ADM evaluator reads.

The file is `classify_image_graph_def.pb` of guided-diffusion's evaluations. It is read without
TensorFlow: tensorboardX brings the protocol-buffer classes of graphs. Only the graph's constants
are read; `inception` computes what the graph's nodes would. A constant is named by its place, such
as "mixed_4/tower_1/conv_2/conv2d_params", and `NODES` maps it to a convolution of `inception`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from etils import epath

from var_jax.config.strict import require
from var_jax.errors import UserError
from var_jax.io.failed_downloads import refuse_failed_download
from var_jax.pretrained import inception

STEM_KEYS = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
# Where the graph keeps the convolutions of a block, by the block's kind.
A_NODES = {
    "branch1x1": "conv",
    "branch5x5_1": "tower/conv",
    "branch5x5_2": "tower/conv_1",
    "branch3x3dbl_1": "tower_1/conv",
    "branch3x3dbl_2": "tower_1/conv_1",
    "branch3x3dbl_3": "tower_1/conv_2",
    "branch_pool": "tower_2/conv",
}
B_NODES = {
    "branch3x3": "conv",
    "branch3x3dbl_1": "tower/conv",
    "branch3x3dbl_2": "tower/conv_1",
    "branch3x3dbl_3": "tower/conv_2",
}
C_NODES = {
    "branch1x1": "conv",
    "branch7x7_1": "tower/conv",
    "branch7x7_2": "tower/conv_1",
    "branch7x7_3": "tower/conv_2",
    "branch7x7dbl_1": "tower_1/conv",
    "branch7x7dbl_2": "tower_1/conv_1",
    "branch7x7dbl_3": "tower_1/conv_2",
    "branch7x7dbl_4": "tower_1/conv_3",
    "branch7x7dbl_5": "tower_1/conv_4",
    "branch_pool": "tower_2/conv",
}
D_NODES = {
    "branch3x3_1": "tower/conv",
    "branch3x3_2": "tower/conv_1",
    "branch7x7x3_1": "tower_1/conv",
    "branch7x7x3_2": "tower_1/conv_1",
    "branch7x7x3_3": "tower_1/conv_2",
    "branch7x7x3_4": "tower_1/conv_3",
}
E_NODES = {
    "branch1x1": "conv",
    "branch3x3_1": "tower/conv",
    "branch3x3_2a": "tower/mixed/conv",
    "branch3x3_2b": "tower/mixed/conv_1",
    "branch3x3dbl_1": "tower_1/conv",
    "branch3x3dbl_2": "tower_1/conv_1",
    "branch3x3dbl_3a": "tower_1/mixed/conv",
    "branch3x3dbl_3b": "tower_1/mixed/conv_1",
    "branch_pool": "tower_2/conv",
}
BLOCK_NODES = {
    inception.A: A_NODES,
    inception.B: B_NODES,
    inception.C: C_NODES,
    inception.D: D_NODES,
    inception.E: E_NODES,
}
DT_FLOAT = 1  # TensorFlow's number of float32


def _nodes() -> Iterator[tuple[str, str]]:
    """Yields the key of every convolution in torchvision's layout, and its place in the graph."""
    for i, key in enumerate(STEM_KEYS):
        yield key, f"conv_{i}" if i else "conv"
    for i, (block, chain) in enumerate(inception.BLOCKS.items()):
        scope = f"mixed_{i}" if i else "mixed"
        for branch, node in BLOCK_NODES[chain].items():
            yield f"{block}.{branch}", f"{scope}/{node}"


NODES: dict[str, str] = dict(_nodes())


def load(path: str) -> inception.Params:
    """Returns the parameters in a frozen graph, for `inception.features`.

    Raises:
      UserError: the file cannot be read, or is a graph of another network; the message names the
        node.
    """
    constants = read_constants(path)

    def take(node: str) -> np.ndarray:
        if node not in constants:
            raise UserError(f"{path}: there is no constant {node}; this is another network's graph")
        return constants[node]

    state = {}
    for key, node in NODES.items():
        kernel = take(f"{node}/conv2d_params")
        require(kernel.ndim == 4, f"{path}: {node}/conv2d_params", kernel.shape, "of four axes")
        state[f"{key}.conv.weight"] = kernel.transpose(3, 2, 0, 1)
        for part, name in BATCH_NORM.items():
            state[f"{key}.bn.{part}"] = take(f"{node}/batchnorm/{name}")
    state["fc.weight"], state["fc.bias"] = take("softmax/weights").T, take("softmax/biases")
    classes = inception.TENSORFLOW_CLASSES
    require(
        state["fc.bias"].shape == (classes,),
        f"{path}: softmax/biases",
        f"of the shape {state['fc.bias'].shape}",
        f"of {classes} classes, as the graph of 2015-12-05 has",
    )
    return inception.from_state(state, path)


def read_constants(path: str) -> dict[str, np.ndarray]:
    """Returns the float32 constants of a frozen graph by their names.

    Raises:
      UserError: there is no such file, or it is no graph.
    """
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.graph_pb2 import GraphDef  # type: ignore[attr-defined]

    refuse_failed_download(path, ".pb")
    try:
        content = epath.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: there is no such file, or it cannot be read") from error
    graph = GraphDef()
    try:
        graph.ParseFromString(content)
    except DecodeError as error:
        raise UserError(f"{path} does not read as a frozen TensorFlow graph: {error}") from error
    constants = {}
    for node in graph.node:
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        if tensor is not None and tensor.dtype == DT_FLOAT:
            constants[node.name] = _array(tensor, f"{path}: {node.name}")
    if not constants:
        raise UserError(f"{path} does not read as a frozen TensorFlow graph: it has no constants")
    return constants


def _array(tensor, name: str) -> np.ndarray:
    """Returns the array of a TensorProto, from its bytes or numbers.

    The last number is repeated to fill the shape.
    """
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    size = math.prod(shape)
    if content := tensor.tensor_content:
        require(len(content) == 4 * size, name, f"of {len(content)} bytes", f"of {4 * size}")
        return np.frombuffer(content, "<f4").reshape(shape)
    values = np.asarray(tensor.float_val, np.float32)
    fits = size >= values.size and (values.size > 0 or not size)
    require(fits, name, f"of {values.size} numbers", f"of {size}, as its shape says")
    return np.pad(values, (0, size - values.size), mode="edge" if size else "constant").reshape(
        shape
    )
