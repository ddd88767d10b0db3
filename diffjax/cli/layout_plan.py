"""A comparison of layouts of many devices by their estimated step time, for `benchmark --plan`."""

import collections
import itertools
import math
from typing import Any

import jax
import tqdm
from ml_collections import ConfigDict

from diffjax.cli.communication import compile_layout, lower, simulate_devices
from diffjax.cluster import cost_model
from diffjax.cluster.collectives import collectives
from diffjax.cluster.cost_model import MACHINES, Machine
from diffjax.errors import UserError, unknown, validate_integer
from diffjax.models.base import Model
from diffjax.runs.loading import build_model
from diffjax.training.compiled_step import step_flops
from diffjax.training.sharding import Devices, tensor_share

UTILIZATION = 0.4  # assumed share of the peak that the computation reaches
MEMORY_SHARE = 0.75  # of a GPU's memory, which jax allocates by default
_BY_AXES = [  # columns: what is exchanged along one axis of the mesh, or along several at once
    f"{'+'.join(axes)} GB" for n in (1, 2, 3) for axes in itertools.combinations(("data", "fsdp", "tensor"), n)
]


def print_plan(config: ConfigDict, num_devices: int, machine: str) -> dict[str, Any]:
    """Compiles the training step for layouts of `num_devices` devices; prints and returns their estimated times.

    Args:
      machine: name of MACHINES.

    Raises:
      UserError: an unknown machine, or no layout can divide the batch.
    """
    if machine not in MACHINES:
        raise unknown("--machine", machine, tuple(MACHINES))
    hosts, count = MACHINES[machine], validate_integer("plan", num_devices)
    simulate_devices(count)
    model, batch_size = build_model(config, abstract=True), config.train.batch_size
    parts = config.train.accumulate * model.group_size
    is_transformer = tensor_share(model.variable_shapes["params"]) >= 0.5
    candidates = [
        Devices.create(num_devices=count, fsdp=fsdp, tensor=tensor)
        for fsdp, tensor in layouts(count, hosts, is_transformer=is_transformer)
    ]
    candidates = [devices for devices in candidates if batch_size % (devices.num_shares * parts) == 0]
    if not candidates:
        raise UserError(
            f"train.batch_size={batch_size}: cannot be divided over {count} devices (--plan) and {parts} parts of "
            f"train.accumulate and groups of the loss; make it a multiple of {count * parts}"
        )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.variable_shapes["params"]))
    print(
        f"{parameters:,} parameters, batch {batch_size}, {count} {machine.upper()} in hosts of {hosts.devices}, "
        f"each with {hosts.memory:g} GB ({MEMORY_SHARE:.0%} for jax), "
        f"{UTILIZATION:.0%} (assumed) of {hosts.tflops:g} TFLOP/s in bfloat16, "
        f"and a bandwidth of {hosts.link:g} GB/s within a host and {hosts.network:g} GB/s between hosts"
    )
    rows = [_row(config, model, devices, hosts) for devices in tqdm.tqdm(candidates, "compiling", unit="layout")]
    unused = [name for name in _BY_AXES if not any(row[name] for row in rows)]
    rows = [{name: value for name, value in row.items() if name not in unused} for row in rows]
    _print_table(rows, hosts)
    return {"parameters": parameters, "machine": machine, "utilization": UTILIZATION, "rows": rows}


def layouts(count: int, machine: Machine, *, is_transformer: bool) -> list[tuple[int, int]]:
    """Returns the layouts to compare, as sizes of `fsdp` and `tensor`; those with fewer exchanges first.

    `fsdp` is one device, or the devices of a host, of eight hosts or of all, divided by `tensor`; `tensor` is 1, and
    for transformers also 2 and 4.
    """
    host = math.gcd(count, machine.devices)
    tensors = [size for size in (1, 2, 4) if host % size == 0] if is_transformer else [1]
    shared = [size for size in (host, 8 * host, count) if count % size == 0]  # devices of a copy of the parameters
    return [(fsdp, tensor) for tensor in tensors for fsdp in sorted({1, *(size // tensor for size in shared)})]


def _row(config: ConfigDict, model: Model, devices: Devices, machine: Machine) -> dict[str, Any]:
    """Returns the memory of a device in GB, the GB that it exchanges, and estimated milliseconds."""
    lowered = lower(config, model, devices, config.train.batch_size)
    compiled = compile_layout(lowered)
    memory, exchanges = compiled.memory_analysis(), collectives(compiled.as_text() or "")
    gigabytes: dict[str, float] = collections.defaultdict(float)
    for collective in exchanges:
        if axes := cost_model.mesh_axes(collective, devices.mesh.shape):
            where = "between hosts GB" if cost_model.crosses_hosts(collective, machine) else "within a host GB"
            for column in (where, f"{'+'.join(axes)} GB"):
                gigabytes[column] += collective.times * collective.size / 1e9
    compute = step_flops(config, lowered) / devices.num_devices / (machine.tflops * 1e12 * UTILIZATION)
    exchange = sum(cost_model.seconds(collective, machine) for collective in exchanges)
    return {
        "fsdp": devices.mesh.shape["fsdp"],
        "tensor": devices.mesh.shape["tensor"],
        "state GB": memory.argument_size_in_bytes / 1e9,
        "temporary GB": memory.temp_size_in_bytes / 1e9,
        **{name: gigabytes[name] for name in ("within a host GB", "between hosts GB", *_BY_AXES)},
        "compute ms": compute * 1e3,
        "exchange ms": exchange * 1e3,
        "step ms": (compute + exchange) * 1e3,
    }


def _print_table(rows: list[dict[str, Any]], machine: Machine) -> None:
    print(" ".join(f"{name:>12}" for name in rows[0]))
    for row in rows:
        cells = {name: str(value) if name in ("fsdp", "tensor") else f"{value:,.3f}" for name, value in row.items()}
        print(" ".join(f"{cell:>{max(12, len(name))}}" for name, cell in cells.items()))
    limit = MEMORY_SHARE * machine.memory
    fits = [row for row in rows if row["state GB"] + row["temporary GB"] <= limit]
    if not fits:
        print(f"no layout fits in {limit:g} GB; lower train.batch_size, or raise train.accumulate")
        return
    best = min(fits, key=lambda row: row["step ms"])
    print(f"fastest that fits: --config.parallel.fsdp={best['fsdp']} --config.parallel.tensor={best['tensor']}")
