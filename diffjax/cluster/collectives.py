"""Communication between the devices of a compiled program, counted in its HLO."""

import collections
import math
import re
from collections.abc import Mapping

_BITS = {"pred": 8, "token": 0, "bf16": 16}  # names of other types end with their bits: f32, s8, u4
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)=")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def bytes_by_kind(hlo: str) -> Mapping[str, int]:
    """Returns the bytes that each kind of collective processes in one run of a compiled program.

    The size of a collective is that of the whole array of a group of devices: the reduced or gathered array, or the
    array before it is scattered. A ring moves (n - 1) / n of these bytes from each of n devices to the next, and twice
    as many for an all-reduce. Collectives in a loop are multiplied by the known trip count.

    Args:
      hlo: text of the program, `compiled.as_text()`.

    Returns:
      Bytes by kind, only of kinds that occur.
    """
    computations, entry = _computations(hlo)
    total: collections.Counter[str] = collections.Counter()
    _add(total, computations, entry, 1)
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


def _add(
    total: collections.Counter[str], computations: Mapping[str, list[re.Match]], computation: str, times: int
) -> None:
    """Adds the bytes of `times` runs of a computation to `total`."""
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
            total[kind] += times * (input_size if kind == "reduce-scatter" else output_size)
        if operation in ("while", "call", "conditional"):
            trips = int(match.group(1)) if (match := _TRIPS.search(rest)) else 1
            for called in _called(rest):
                if called in computations:
                    _add(total, computations, called, times * trips)


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
