"""Files of Inception v3's weights, at a sixteenth of its channels, as users bring them."""

import json
from pathlib import Path

import numpy as np
from tensorboardX.proto.graph_pb2 import GraphDef

from helpers import random_weights
from var_jax.pretrained import inception_graph

SHAPES = Path(__file__).parents[1] / "pretrained" / "inception.npz"


def state_dict(classes: int = 1008) -> dict[str, np.ndarray]:
    """Returns random weights in the layout of torchvision and pytorch-fid."""
    with np.load(SHAPES) as file:
        shapes = json.loads(str(file["shapes"]))
    return random_weights.state_dict({**shapes, "fc.weight": (classes, 128), "fc.bias": (classes,)})


def write_graph(path: Path, state: dict[str, np.ndarray]):
    """Writes a state dict as the constants of a frozen graph, named as in TensorFlow's of 2015."""
    constants = {"softmax/weights": state["fc.weight"].T, "softmax/biases": state["fc.bias"]}
    for key, node in inception_graph.NODES.items():
        constants[f"{node}/conv2d_params"] = state[f"{key}.conv.weight"].transpose(2, 3, 1, 0)
        for part, name in inception_graph.BATCH_NORM.items():
            constants[f"{node}/batchnorm/{name}"] = state[f"{key}.bn.{part}"]
    graph = GraphDef()
    graph.node.add(name="ExpandDims", op="Placeholder")
    for name, array in constants.items():
        node = graph.node.add(name=name, op="Const")
        tensor = node.attr["value"].tensor
        tensor.dtype = 1
        for size in array.shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = np.ascontiguousarray(array, "<f4").tobytes()
    path.write_bytes(graph.SerializeToString())
