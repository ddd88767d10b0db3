"""Parameters of ONNX files, and files that are damaged."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffjax.errors import UserError
from diffjax.published.tensors import open_tensors

RNG = np.random.default_rng(0)
PARAMETERS = {
    "first.weight": RNG.normal(size=(4, 1, 3, 3)),
    "val_3": RNG.normal(size=(4, 1, 1)),
    "val_4": RNG.normal(size=(4, 1, 1)),
    "second.2.weight": RNG.normal(size=(2, 4, 3, 3)),
    "second.2.bias": RNG.normal(size=2),
}
CONSTANTS = {"one": np.ones(2), "shape": np.array([0, 2, -1])}


def node(kind, *inputs):
    """Returns a node whose output is the name of its operation, and the inputs."""
    return helper.make_node(kind, list(inputs), [f"{kind}({','.join(inputs)})"])


def chain(*steps):
    """Returns nodes, each of which reads the output of the one before first."""
    nodes, last = [], "x"
    for kind, *inputs in steps:
        nodes.append(node(kind, last, *inputs))
        last = nodes[-1].output[0]
    return nodes


NODES = chain(  # convolution, group norm in two groups, a halved resolution, convolution
    ("Conv", "first.weight"),
    ("Reshape", "shape"),
    ("InstanceNormalization", "one", "one"),
    ("Reshape", "shape"),
    ("Mul", "val_3"),
    ("Add", "val_4"),
    ("Sigmoid",),
    ("AveragePool",),
    ("Conv", "second.2.weight", "second.2.bias"),
)


def tensor(name, value):
    kind = np.int64 if name == "shape" else np.float32
    return numpy_helper.from_array(value.astype(kind), name)


def save(path, *, nodes=NODES, tensors=None):
    stored = [tensor(*each) for each in {**PARAMETERS, **CONSTANTS}.items()] if tensors is None else tensors
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [value], [output], stored)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_parameters_have_their_names(tmp_path):
    found = open_tensors(save(tmp_path / "model.onnx"))
    expected = {
        "first.weight": "first.weight",
        "second.2.weight": "second.2.weight",
        "second.2.bias": "second.2.bias",
        "second.2.norm.weight": "val_3",
        "second.2.norm.bias": "val_4",
    }
    assert found.keys() == expected.keys()
    for name, stored in expected.items():
        value = PARAMETERS[stored].astype(np.float32)
        value = value.reshape(-1) if "norm" in name else value
        assert found[name].shape == value.shape and found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name].read(), value)


@pytest.mark.parametrize("operation", ["Relu", "Conv"])
def test_norms_before_other_nodes_have_no_name(tmp_path, operation):
    """The reader of the norm is not known: its parameters are left out instead of guessed."""
    nodes = [*NODES[:6], *chain((operation,))]
    nodes[-1].input[0] = NODES[5].output[0]
    assert not [name for name in open_tensors(save(tmp_path / "model.onnx", nodes=nodes)) if "norm" in name]


def test_half_precision(tmp_path):
    value = PARAMETERS["first.weight"].astype(np.float16)
    path = save(tmp_path / "model.onnx", tensors=[numpy_helper.from_array(value, "first.weight")])
    np.testing.assert_array_equal(open_tensors(path)["first.weight"].read(), value)


def large(name="first.weight"):
    """Returns a tensor of 8 GiB whose values are 4 bytes."""
    return TensorProto(name=name, dims=[2**31], data_type=TensorProto.FLOAT, raw_data=bytes(4))


def external():
    stored = tensor("first.weight", PARAMETERS["first.weight"])
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="/etc/passwd")
    return stored


def test_a_declared_size_without_values(tmp_path):
    found = open_tensors(save(tmp_path / "model.onnx", tensors=[large()]))
    with pytest.raises(UserError, match=r"is damaged: first\.weight: "):
        found["first.weight"].read()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (external(), "has first.weight in another file; export it with its weights inside"),
        (TensorProto(name="first.weight", dims=[1], data_type=77, raw_data=bytes(4)), "has an unknown type"),
        (tensor("first.\n", np.ones(1)), "is damaged"),
    ],
)
def test_files_that_are_refused(tmp_path, stored, message):
    path = save(tmp_path / "model.onnx", tensors=[stored])
    with pytest.raises(UserError, match=message):
        open_tensors(path)


@pytest.mark.parametrize("content", [b"\x80\x02}", bytes(range(256)), b"PK\x03\x04"])
def test_files_of_other_formats(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not an ONNX file that can be read"):
        open_tensors(path)


def test_truncated_files(tmp_path):
    path = save(tmp_path / "model.onnx")
    content = path.read_bytes()
    for size in range(1, len(content), 37):
        path.write_bytes(content[:size])
        try:
            for each in open_tensors(path).values():
                each.read()
        except UserError as error:
            assert "\n" not in str(error)


def test_files_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        open_tensors(tmp_path / "model.onnx")
