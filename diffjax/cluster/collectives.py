"""What the devices of a compiled program tell one another, read from its HLO."""

import collections
import math
import re
from collections.abc import Mapping

_BITS = {"pred": 8, "token": 0, "bf16": 16}  # others end in theirs: f32, s8, u4
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)=")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def bytes_by_kind(hlo: str) -> Mapping[str, int]:
    """Bytes that each kind of collective of a compiled program (`compiled.as_text()`) works on, in one run of it.

    Those of the whole array that a group of devices has in common: what is reduced, or gathered, or about to be
    scattered. A ring moves (n - 1) / n of them from each of n devices to the next, and of an all-reduce twice that.
    What stands in a loop counts as often as the loop is known to run. A kind that does not occur is not there.
    """
    computations, entry = _computations(hlo)
    total = collections.Counter()
    _add(total, computations, entry, 1)
    return dict(total)


def _computations(hlo: str) -> tuple[dict[str, list[re.Match]], str]:
    """The instructions of each computation, and the name of the one that is run."""
    computations, entry, current = {}, "", None
    for line in hlo.splitlines():
        if line.endswith("{") and (head := _HEAD.match(line)):
            current = computations.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current.append(instruction)
    return computations, entry


def _add(total: collections.Counter, computations: Mapping[str, list[re.Match]], name: str, times: int) -> None:
    sizes = {}
    for instruction in computations[name]:
        own, shape, operation, rest = instruction.groups()
        sizes[own] = _size(shape)
        kind = operation.removesuffix("-start")
        if kind in _KINDS:
            operands = re.findall(r"%([\w.-]+)", rest.split(")")[0])
            given = sum(sizes.get(operand, 0) for operand in operands)
            # The result of a "-start" has its operands in it too.
            made = sizes[own] - given if operation.endswith("-start") and kind != "all-reduce" else sizes[own]
            total[kind] += times * (given if kind == "reduce-scatter" else made)
        if operation in ("while", "call", "conditional"):
            trips = int(found.group(1)) if (found := _TRIPS.search(rest)) else 1
            for called in _called(rest):
                if called in computations:
                    _add(total, computations, called, times * trips)


def _called(rest: str) -> list[str]:
    found = []
    for start in _CALLED.finditer(rest):
        listed = re.match(r"\{([^}]*)\}|%?([\w.-]+)", rest[start.end() :])
        found += re.findall(r"[\w.-]+", listed.group(1) or listed.group(2))
    return found


def _size(shape: str) -> int:
    """Bytes of an array or a tuple of arrays."""
    total = 0
    for kind, dimensions in _SHAPE.findall(shape):
        bits = _BITS.get(kind) or int((re.search(r"(\d+)", kind) or [0, 0])[1])
        if kind == "token":
            bits = 0
        total += math.prod(map(int, filter(None, dimensions.split(",")))) * bits // 8
    return total
