"""The frozen graph of the ADM evaluator, on graphs that the tests write."""

import jax
import numpy as np
import pytest
from tensorboardX.proto.graph_pb2 import GraphDef

from helpers import inception_files
from var_jax.errors import UserError
from var_jax.evaluate import feature_networks
from var_jax.pretrained import inception, inception_graph


@pytest.fixture(scope="module")
def state():
    return inception_files.state_dict()


@pytest.fixture
def graph(tmp_path, state):
    inception_files.write_graph(tmp_path / "graph.pb", state)
    return tmp_path / "graph.pb"


def test_graph_holds_the_parameters_of_the_port(graph, state):
    """Every constant arrives at the convolution that it belongs to: no two of the random arrays are
    alike."""
    loaded, port = inception_graph.load(str(graph)), inception.from_state(state)
    paths, arrays = zip(*jax.tree.leaves_with_path(loaded), strict=True)
    assert paths == tuple(path for path, _ in jax.tree.leaves_with_path(port)) and len(paths) == 190
    for array, expected in zip(arrays, jax.tree.leaves(port), strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("key", "node"),
    [
        ("Conv2d_4a_3x3", "conv_4"),
        ("Mixed_5b.branch5x5_2", "mixed/tower/conv_1"),
        ("Mixed_5d.branch_pool", "mixed_2/tower_2/conv"),
        ("Mixed_6a.branch3x3dbl_3", "mixed_3/tower/conv_2"),
        ("Mixed_6d.branch1x1", "mixed_6/conv"),
        ("Mixed_6e.branch7x7dbl_5", "mixed_7/tower_1/conv_4"),
        ("Mixed_7a.branch7x7x3_4", "mixed_8/tower_1/conv_3"),
        ("Mixed_7c.branch3x3dbl_3b", "mixed_10/tower_1/mixed/conv_1"),
    ],
)
def test_nodes_are_where_the_published_graph_keeps_them(key, node):
    """One name of each kind of block, as torch-fidelity's converter of the published graph has
    them; the test's own graph is named by the same table and would not show a wrong one."""
    assert inception_graph.NODES[key] == node
    assert len(set(inception_graph.NODES.values())) == len(inception_graph.NODES) == 94


def test_constants_of_repeated_numbers_are_read(tmp_path):
    """TensorFlow writes a constant of equal numbers as one number and the shape."""
    graph = GraphDef()
    for name, values in (("one", [0.5]), ("more", [1, 2, 3, 3, 3, 3])):
        tensor = graph.node.add(name=name, op="Const").attr["value"].tensor
        tensor.dtype = 1
        for size in (2, 3):
            tensor.tensor_shape.dim.add(size=size)
        tensor.float_val.extend(values)
    (tmp_path / "graph.pb").write_bytes(graph.SerializeToString())
    constants = inception_graph.read_constants(str(tmp_path / "graph.pb"))
    np.testing.assert_array_equal(constants["one"], np.full((2, 3), 0.5))
    np.testing.assert_array_equal(constants["more"], [[1, 2, 3], [3, 3, 3]])


def test_graph_that_is_another_file_is_refused(graph, state, tmp_path):
    """Each line names the file, and the node where it is one."""
    refused = {
        "none.pb": "there is no such file",
        "text.pb": "does not read as a frozen TensorFlow graph",
        "empty.pb": "it is an empty file",
        "nodes.pb": "it has no constants",
        "lacking.pb": "there is no constant mixed_6/conv/conv2d_params",
        "classes.pb": "softmax/biases is of the shape (10,)",
        "short.pb": "softmax/biases is of 4 bytes; it must be of 4032",
    }
    (tmp_path / "text.pb").write_bytes(b"no graph at all")
    (tmp_path / "empty.pb").write_bytes(b"")
    (tmp_path / "nodes.pb").write_bytes(GraphDef(version=3).SerializeToString())
    parsed = GraphDef.FromString(graph.read_bytes())
    lacking = [node for node in parsed.node if node.name != "mixed_6/conv/conv2d_params"]
    (tmp_path / "lacking.pb").write_bytes(GraphDef(node=lacking).SerializeToString())
    few = inception_files.state_dict(10)
    inception_files.write_graph(tmp_path / "classes.pb", few)
    (biases,) = [node for node in parsed.node if node.name == "softmax/biases"]
    biases.attr["value"].tensor.tensor_content = b"1234"
    (tmp_path / "short.pb").write_bytes(parsed.SerializeToString())
    for name, message in refused.items():
        with pytest.raises(UserError) as error:
            inception_graph.load(str(tmp_path / name))
        assert message in str(error.value) and name in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.long
def test_feature_network_names_whose_weights_it_has(graph, state, tmp_path):
    """The graph and the port of the same weights differ in the resize, which a report says."""
    np.savez(tmp_path / "port.npz", **state)
    np.savez(tmp_path / "torchvision.npz", **inception_files.state_dict(10))
    networks = {
        name: feature_networks.load("inception", str(tmp_path / name))
        for name in ("graph.pb", "port.npz", "torchvision.npz")
    }
    described = {name: network.described() for name, network in networks.items()}
    assert "ADM" in described["graph.pb"]["weights_from"]
    assert "pytorch-fid" in described["port.npz"]["weights_from"]
    assert described["torchvision.npz"]["weights_from"] == "torchvision"
    assert described["graph.pb"]["preprocessing"] != described["port.npz"]["preprocessing"]
    conventions = [network.convention for network in networks.values()]
    assert conventions == ["ADM", "pytorch-fid's resize", ""]
    assert {network.dimensions for network in networks.values()} == {128}
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    for name, preprocessing in (("graph.pb", "tensorflow"), ("port.npz", "pytorch_fid")):
        network = networks[name]
        expected = inception.features(network.params, images, preprocessing)
        for result, array in zip(
            network.apply_with_spatial(network.params, images)[::2], expected, strict=True
        ):
            np.testing.assert_allclose(result, array, rtol=1e-5, atol=1e-5)
