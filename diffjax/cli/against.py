"""Comparison of speed with PyTorch, for `benchmark --against`."""

import importlib.util
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from diffjax.benchmark import cases, turns
from diffjax.errors import UserError, note, unknown

PEERS = ("torch", "torch_compile")
_PACKAGES = ("torch", "diffusers", "transformers")
_INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX", "asimd": "NEON", "sve": "SVE"}


def print_comparison(
    peers: Sequence[str], names: Sequence[str], scale: str, batch_size: int, num_turns: int, steps: int
) -> dict[str, Any]:
    """Times cases in diffjax and in PyTorch by turns; prints and returns the results.

    Args:
      peers: of PEERS.
      names: of `cases.CASES`; none: all.
      scale: of `cases.SCALES`.
      batch_size: examples of each case; 0: the case's.
      num_turns: turns of each side.
      steps: timed steps per turn.

    Returns:
      "machine": devices, threads, versions and settings; "rows": results of each case and peer.

    Raises:
      UserError: an unknown peer or case, a package is missing, or the networks have other numbers of parameters.
    """
    for kind, chosen, choices in (("peer", peers, PEERS), ("case", names, cases.CASES)):
        for name in chosen:
            if name not in choices:
                raise unknown(kind, name, choices)
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--against={','.join(peers)}: requires {package}; pip install 'diffjax[parity]'")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # workers share the GPU with this process
    dtype = "bfloat16" if jax.default_backend() == "gpu" else "float32"
    rows: list[dict[str, Any]] = []
    machine: dict[str, Any] = {"cpu": cpu(), "dtype": dtype, "scale": scale, "turns": num_turns, "steps": steps}
    print(f"{machine['cpu']}; {dtype}; {num_turns} turns of {steps} steps")
    print(_line(_HEADER))
    for name in names or cases.CASES:
        config = cases.make_config(name, scale, dtype, batch_size)
        request = {"case": name, "scale": scale, "dtype": dtype, "batch_size": batch_size}
        for peer in peers:
            theirs = {**request, "side": peer, "peer": cases.peer_of(name, config)}
            try:
                result = turns.compare({**request, "side": "jax"}, theirs, turns=num_turns, steps=steps)
            except UserError as error:
                if peer != "torch_compile":
                    raise
                note(f"torch_compile is left out: {error}")
                continue
            rows.append(_row(name, peer, config.train.batch_size, result))
            print(_line(_cells(rows[-1])), flush=True)
            _check_parameters(name, result)
            for side, timing in (("diffjax", result.ours), (peer, result.peer)):
                machine[side] = {**timing.hardware, "versions": timing.versions}
    for side in ("diffjax", *peers):
        if side in machine:
            versions = ", ".join(f"{package} {version}" for package, version in machine[side]["versions"].items())
            print(f"{side}: {machine[side]['device']}, {machine[side]['threads']} threads, {versions}")
    return {"machine": machine, "rows": rows}


def cpu() -> str:
    """Returns the architecture of the CPU and its instruction sets that matter for speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    known = [name for flag, name in _INSTRUCTIONS.items() if flag in flags]
    return f"{platform.machine()} with {', '.join(known) or 'unknown instruction sets'}"


def _row(name: str, peer: str, batch_size: int, result: turns.Comparison) -> dict[str, Any]:
    sides = {"diffjax": result.ours, "peer": result.peer}
    return {
        "case": name,
        "per": cases.CASES[name].per,
        "peer": peer,
        "batch_size": batch_size,
        "ratio": statistics.median(result.ratios),
        "ratios": list(result.ratios),
        **{f"{side}_seconds": timing.seconds for side, timing in sides.items()},
        **{f"{side}_parameters": timing.parameters for side, timing in sides.items()},
        **{f"{side}_peak_memory_gib": timing.peak_memory / 2**30 for side, timing in sides.items()},
        **{f"{side}_compile_seconds": timing.compile_seconds for side, timing in sides.items()},
    }


def _check_parameters(name: str, result: turns.Comparison) -> None:
    ours, theirs, tolerance = result.ours.parameters, result.peer.parameters, cases.CASES[name].tolerance
    if abs(ours - theirs) > tolerance * ours:
        raise UserError(
            f"--cases={name}: {ours:,} parameters, and {theirs:,} of the peer, differ by more than {tolerance:.0%}, so "
            "the networks are not the same; install the versions of 'diffjax[parity]'"
        )


_HEADER = (
    *("case", "per", "peer", "batch", "parameters", "peer's", "seconds", "peer's", "ratio", "range"),
    *("GiB", "peer's", "compile s", "peer's"),
)
_WIDTHS = (14, 21, 13, 5, 11, 11, 9, 9, 6, 11, 6, 6, 9, 6)


def _cells(row: dict[str, Any]) -> list[str]:
    compile_seconds = [row[f"{side}_compile_seconds"] for side in ("diffjax", "peer")]
    return [
        *(row["case"], row["per"], row["peer"], str(row["batch_size"])),
        *(f"{row[f'{side}_parameters']:,}" for side in ("diffjax", "peer")),
        *(f"{row[f'{side}_seconds']:.4g}" for side in ("diffjax", "peer")),
        f"{row['ratio']:.2f}",
        f"{min(row['ratios']):.2f}-{max(row['ratios']):.2f}",
        *(f"{row[f'{side}_peak_memory_gib']:.2f}" for side in ("diffjax", "peer")),
        *("-" if seconds is None else f"{seconds:.1f}" for seconds in compile_seconds),
    ]


def _line(cells: Sequence[str]) -> str:
    return " ".join(
        f"{cell:{width}}" if i < 3 else f"{cell:>{width}}"
        for i, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
