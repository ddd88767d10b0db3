"""Communication between the devices of a compiled program, counted in its HLO."""

import collections
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

_BITS = {"pred": 8, "token": 0, "bf16": 16}  # names of other types end with their bits: f32, s8, u4
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)=")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


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


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a compiled program. One in a loop is executed as often as the known trip count.

    Args:
      hlo: text of the program, `compiled.as_text()`.
    """
    computations, entry = _computations(hlo)
    result: list[Collective] = []
    _add(result, computations, entry, 1)
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


def _computations(hlo: str) -> tuple[dict[str, list[re.Match]], str]:
    """Returns the instructions of each computation, and the name of the entry computation."""
    computations, entry, current = {}, "", None
    for line in hlo.splitlines():
        if line.endswith("{") and (head := _HEAD.match(line)):
            current = computations.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current.append(instruction)
    return computations, entry


def _add(result: list[Collective], computations: Mapping[str, list[re.Match]], computation: str, times: int) -> None:
    """Adds the collectives of `times` runs of a computation to `result`."""
    sizes = {}
    for instruction in computations[computation]:
        name, shape, operation, rest = instruction.groups()
        sizes[name] = _size(shape)
        kind = operation.removesuffix("-start")
        if kind in _KINDS:
            operands = re.findall(r"%([\w.-]+)", rest.split(")")[0])
            input_size = sum(sizes.get(operand, 0) for operand in operands)
            # The result of a "-start" includes its operands, except that of an all-reduce.
            includes_operands = operation.endswith("-start") and kind != "all-reduce"
            output_size = sizes[name] - input_size if includes_operands else sizes[name]
            size = input_size if kind == "reduce-scatter" else output_size
            result.append(Collective(kind, size, _group(rest), times))
        if operation in ("while", "call", "conditional"):
            trips = int(match.group(1)) if (match := _TRIPS.search(rest)) else 1
            for called in _called(rest):
                if called in computations:
                    _add(result, computations, called, times * trips)


def _group(rest: str) -> tuple[int, ...]:
    """Returns the first group of devices of a collective: listed, of a transposed range, or along axes of a mesh.

    Of the pairs of a permutation it is the one whose devices are farthest apart.
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
        total += math.prod(map(int, filter(None, dimensions.split(",")))) * bits // 8
    return total
