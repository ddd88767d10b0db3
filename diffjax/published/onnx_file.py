"""Reads the parameters of an ONNX file, under the names that they had before the network was exported.

Exporters keep the names of parameters that a node reads unchanged. A group norm becomes several nodes, which read its
weight and bias in another shape, under a new name such as val_45. These are named after the layer that reads the norm:
"LAYER.norm.weight" and "LAYER.norm.bias", where LAYER.weight is the kernel of that layer.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.published.lazy import LazyTensor

_LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Add", "AveragePool", "Mul", "Reshape", "Resize", "Sigmoid")  # nodes between a norm and the layer after it

Node = Any  # onnx.NodeProto
Readers = Mapping[str, Sequence[Node]]  # nodes that read a value, by its name


def open_onnx_file(path: str | Path) -> dict[str, LazyTensor]:
    """Returns the parameters of an ONNX file by name. Nothing in the file is executed.

    Raises:
      UserError: the file cannot be read, or has its weights in other files; or the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"{path}: reading an ONNX file requires onnx: pip install 'diffjax[published]'") from error
    try:
        with io.open_regular(path):
            graph = onnx.load(path, load_external_data=False).graph
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the class depends on the implementation of protobuf
        raise UserError(f"{path} is not an ONNX file that can be read: {excerpt(str(error))}") from error
    stored = {tensor.name: tensor for tensor in graph.initializer}
    parameters = {name: (tensor, tuple(tensor.dims)) for name, tensor in stored.items() if "." in name}  # no constants
    for name, inside in _norms(graph.node, stored):
        parameters[name] = stored[inside], tuple(stored[inside].dims)[:1]
    tensors = {}
    for name, (tensor, shape) in parameters.items():
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UserError(f"{path} has {excerpt(name)} in another file; export it with its weights inside")
        if not name.isprintable() or tensor.data_type not in onnx.TensorProto.DataType.values():
            raise UserError(f"{path} is damaged: {excerpt(name)} has an unknown type; download it again")
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        tensors[name] = LazyTensor(shape, dtype, functools.partial(_read, Path(path), tensor, shape))
    return tensors


def _read(path: Path, tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
    from onnx import numpy_helper

    try:
        return numpy_helper.to_array(tensor).reshape(shape)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: {excerpt(tensor.name)}: {excerpt(str(error))}; download it again"
        ) from error


def _norms(nodes: Sequence[Node], stored: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the names of the weights and biases of group norms, each with its name in the file."""
    readers: defaultdict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    for node in nodes:
        if node.op_type != "InstanceNormalization":
            continue
        found, last = _scale_and_shift(node, readers, stored)
        if len(found) == 2 and (layer := _next_layer(last, readers, stored)):
            yield f"{layer}.norm.weight", found[0]
            yield f"{layer}.norm.bias", found[1]


def _scale_and_shift(node: Node, readers: Readers, stored: Mapping[str, Any]) -> tuple[list[str], Node]:
    """Returns the parameters that multiply the output of a norm and are added to it, and the node that adds."""
    found: list[str] = []
    for kind in ("Reshape", "Mul", "Add"):
        following = [reader for output in node.output for reader in readers[output] if reader.op_type == kind]
        if len(following) != 1:
            return [], node
        (node,) = following
        found += [name for name in node.input if kind != "Reshape" and name in stored]
    return found, node


def _next_layer(node: Node, readers: Readers, stored: Mapping[str, Any]) -> str | None:
    """Returns the name of the first layer after a node; None: another node comes before."""
    seen, queue = set(), [node]
    while queue:
        for reader in [reader for output in queue.pop(0).output for reader in readers[output]]:
            kernels = [name for name in reader.input if name.endswith(".weight") and name in stored]
            if reader.op_type in _LAYERS and kernels:
                return kernels[0].removesuffix(".weight")
            if reader.op_type in _BETWEEN and id(reader) not in seen:
                seen.add(id(reader))
                queue.append(reader)
    return None
