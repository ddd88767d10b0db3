"""Communication between the devices of a compiled program, counted in its HLO."""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_BITS = {"pred": 8, "token": 0, "bf16": 16}  # names of other types end with their bits: f32, s8, u4
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)=")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_COUNTS = re.compile(r"(?:replica_count|num_partitions)=(\d+)")
# Operations that pass on an array as it is, or in another order or type; fusions and their parameters are links.
_MOVES = ("convert", "copy", "bitcast", "reshape", "transpose", "fusion", "call", "parameter")


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
      kind: "all-reduce" | "all-gather" | "reduce-scatter" | "all-to-all" | "collective-permute".
      size: bytes of the reduced or gathered array, or of the array before it is scattered; of the other kinds, those
        that one device sends.
      group: devices that exchange data with each other, one of the groups that do so at the same time.
      times: number of executions in one run of the program.
    """

    kind: str
    size: int
    group: tuple[int, ...]
    times: int


class _Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    operands: Sequence[str]
    rest: str  # text after the opening parenthesis
    is_root: bool


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a compiled program. One in a loop is executed as often as the known trip count.

    Two changes of XLA's compiler for CPUs are undone. It exchanges half-precision arrays in float32. It also computes
    an all-reduce if each device keeps only its part of a sum, where other compilers use a reduce-scatter.

    Args:
      hlo: text of the program, `compiled.as_text()`.
    """
    computations, entry = _computations(hlo)
    devices = math.prod(map(int, _COUNTS.findall(hlo.partition("\n")[0])))
    result: list[Collective] = []
    _add(result, computations, _Dataflow(computations), entry, times=1, devices=devices)
    return result


def bytes_by_kind(hlo: str) -> Mapping[str, int]:
    """Returns the bytes that each kind of collective processes in one run of a compiled program.

    A ring moves (n - 1) / n of these bytes from each of n devices to the next, and twice as many for an all-reduce.

    Args:
      hlo: text of the program, `compiled.as_text()`.

    Returns:
      Bytes by kind, only of kinds that occur.
    """
    total: collections.Counter[str] = collections.Counter()
    for collective in collectives(hlo):
        total[collective.kind] += collective.times * collective.size
    return dict(total)


def _computations(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of each computation, and the name of the entry computation."""
    computations, entry, current = {}, "", None
    for line in hlo.splitlines():
        if line.endswith("{") and (head := _HEAD.match(line)):
            current = computations.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            root, name, shape, operation, rest = match.groups()
            operands = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
            current.append(_Instruction(name, shape, operation, operands, rest, bool(root)))
    return computations, entry


class _Dataflow:
    """Operands and users of each array, across the borders of fusions.

    The operand of a fusion is the root of its computation, and that of a parameter is an operand of the fusion.
    """

    def __init__(self, computations: Mapping[str, Sequence[_Instruction]]):
        self.instructions = {instruction.name: instruction for body in computations.values() for instruction in body}
        for caller in list(self.instructions.values()):
            if caller.operation in ("fusion", "call"):
                for inner in (inner for name in _called(caller.rest) for inner in computations.get(name, ())):
                    if inner.operation == "parameter":
                        operand = caller.operands[int(inner.rest.partition(")")[0])]
                        self.instructions[inner.name] = inner._replace(operands=(operand,))
                    if inner.is_root:
                        self.instructions[caller.name] = caller._replace(operands=(inner.name,))
        self.users: dict[str, list[_Instruction]] = collections.defaultdict(list)
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                self.users[operand].append(instruction)

    def was_half(self, name: str) -> bool:
        """Returns whether an array was converted from half precision to float32."""
        instruction = self.instructions[name]
        if not instruction.shape.startswith("f32["):
            return instruction.shape.startswith(("bf16[", "f16["))
        operands = instruction.operands if instruction.operation in _MOVES else ()
        return bool(operands) and self.was_half(operands[0])

    def outputs(self, instruction: _Instruction) -> list[list[str]]:
        """Returns the names of each output of a collective that has one for each operand."""
        if not instruction.shape.startswith("("):
            return [[instruction.name]]
        names: list[list[str]] = [[] for _ in instruction.operands]
        for use in self.users[instruction.name]:
            if index := re.search(r"index=(\d+)", use.rest):
                names[int(index.group(1))].append(use.name)
        return names

    def becomes_half(self, names: Sequence[str]) -> bool:
        """Returns whether each use of an array with these names converts it, or a part of it, to half precision."""
        uses = [use for name in names for use in self.users.get(name, ())]
        return bool(uses) and all(
            use.shape.startswith(("bf16[", "f16["))
            if use.operation == "convert"
            else use.operation in (*_MOVES, "slice", "dynamic-slice") and self.becomes_half([use.name])
            for use in uses
        )

    def is_sliced(self, names: Sequence[str], size: int) -> bool:
        """Returns whether each use of an array with these names takes `size` elements, by a dynamic-slice."""
        uses = [use for name in names for use in self.users.get(name, ())]
        return bool(uses) and all(
            _elements(use.shape) == size
            if use.operation == "dynamic-slice"
            else use.operation in _MOVES and self.is_sliced([use.name], size)
            for use in uses
        )


def _add(
    result: list[Collective],
    computations: Mapping[str, Sequence[_Instruction]],
    dataflow: _Dataflow,
    computation: str,
    *,
    times: int,
    devices: int,
) -> None:
    """Adds the collectives of `times` runs of a computation to `result`."""
    for instruction in computations[computation]:
        kind = instruction.operation.removesuffix("-start")
        if kind in _KINDS:
            group = _group(instruction.rest) or tuple(range(devices))
            sizes = _sizes_by_kind(dataflow, instruction, kind, len(group))
            result += [Collective(kind, size, group, times) for kind, size in sizes.items()]
        if instruction.operation in ("while", "call", "conditional"):
            trips = int(match.group(1)) if (match := _TRIPS.search(instruction.rest)) else 1
            for called in _called(instruction.rest):
                if called in computations:
                    _add(result, computations, dataflow, called, times=times * trips, devices=devices)


def _sizes_by_kind(dataflow: _Dataflow, instruction: _Instruction, kind: str, devices: int) -> Mapping[str, int]:
    """Returns the bytes of a collective by kind: some sums of an all-reduce can be a reduce-scatter."""
    _, shape, operation, operands, rest, _ = instruction
    inputs = [dataflow.instructions[operand].shape for operand in operands]
    input_size = sum(map(_size, inputs))
    # The result of a "-start" includes its operands, except that of an all-reduce.
    includes_operands = operation.endswith("-start") and kind != "all-reduce"
    total = input_size if kind == "reduce-scatter" else _size(shape) - input_size * includes_operands
    outputs = dataflow.outputs(instruction) if "reduce" in kind else [[]] * len(operands)
    sizes: collections.Counter[str] = collections.Counter()
    for operand, input_, output in zip(operands, inputs, outputs, strict=True):
        size = total * _size(input_) // max(1, input_size)
        # Several sums are combined under the name of the first, so their outputs tell which are promoted.
        promoted = dataflow.becomes_half(output) if shape.startswith("(") else "_promoted" in rest
        if input_.startswith("f32[") and (promoted or dataflow.was_half(operand)):
            size //= 2
        is_scattered = kind == "all-reduce" and dataflow.is_sliced(output, _elements(input_) // devices)
        sizes["reduce-scatter" if is_scattered else kind] += size
    return sizes


def _group(rest: str) -> tuple[int, ...]:
    """Returns the first group of devices of a collective: listed, of a transposed range, or along axes of a mesh.

    Of the pairs of a permutation it is the one whose devices are farthest apart. It is empty if the collective has one
    group of all devices and lists none.
    """
    if match := re.search(r"source_target_pairs=\{(\{[\d,{}]+\})\}", rest):
        pairs = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)\}", match.group(1))]
        return max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(map(int, match.group(1).split(",")))
    if match := re.search(r"replica_groups=\[(\d+),\d+\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return tuple(_device_ids(match.group(2)).reshape(int(match.group(1)), -1)[0].tolist())
    match = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", rest)
    if not match:
        if "replica_groups=" in rest and "replica_groups={}" not in rest:
            raise ValueError(f"unknown groups of devices: {rest}")
        return ()
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match.group(1))}
    ids = _device_ids(match.group(2) or f"[{math.prod(sizes.values())}]").reshape(tuple(sizes.values()))
    along = re.findall(r"'(\w+)'", match.group(3))
    return tuple(ids[tuple(slice(None) if name in along else 0 for name in sizes)].ravel().tolist())


def _device_ids(text: str) -> np.ndarray:
    """Returns the devices of a range "[4,2]T(1,0)": 0, 1, ... in this shape, transposed."""
    shape, _, order = text.strip("[").rstrip(")").replace("]", "").partition("T(")
    sizes = tuple(map(int, shape.split(",")))
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(tuple(map(int, order.split(",")))) if order else ids


def _called(rest: str) -> list[str]:
    """Returns the names of the computations that an instruction calls."""
    names = []
    for start in _CALLED.finditer(rest):
        if listed := re.match(r"\{([^}]*)\}|%?([\w.-]+)", rest[start.end() :]):
            names += re.findall(r"[\w.-]+", listed.group(1) or listed.group(2))
    return names


def _size(shape: str) -> int:
    """Returns the bytes of an array or a tuple of arrays."""
    total = 0
    for kind, dimensions in _SHAPE.findall(shape):
        digits = re.search(r"\d+", kind)
        bits = _BITS[kind] if kind in _BITS else int(digits[0]) if digits else 0
        total += _product(dimensions) * bits // 8
    return total


def _elements(shape: str) -> int:
    """Returns the number of elements of an array; 0 for a tuple."""
    match = _SHAPE.match(shape)
    return _product(match.group(2)) if match else 0


def _product(dimensions: str) -> int:
    return math.prod(map(int, filter(None, dimensions.split(","))))
