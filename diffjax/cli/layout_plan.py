"""A comparison of layouts of many devices by their estimated step time, for `benchmark --plan`."""

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
from diffjax.training.sharding import Devices

UTILIZATION = 0.4  # assumed share of the peak that the computation reaches


def print_plan(config: ConfigDict, num_devices: int, machine: str, examples: int) -> dict[str, Any]:
    """Compiles the training step for layouts of `num_devices` devices; prints and returns their estimated times.

    The layouts have `fsdp` of one device, a host or all devices, and for transformers `tensor` of 1, 2 and 4.

    Args:
      machine: name of MACHINES.
      examples: size of the data set.

    Raises:
      UserError: an unknown machine, or no layout can divide the batch.
    """
    if machine not in MACHINES:
        raise unknown("--machine", machine, tuple(MACHINES))
    hosts, count = MACHINES[machine], validate_integer("plan", num_devices)
    simulate_devices(count)
    model, batch_size = build_model(config, abstract=True), config.train.batch_size
    layouts = [
        devices
        for devices in _layouts(model, count, hosts)
        if batch_size % (devices.num_shares * config.train.accumulate * model.group_size) == 0
    ]
    if not layouts:
        raise UserError(
            f"train.batch_size={batch_size}: cannot be divided over {count} devices (--plan) and "
            f"train.accumulate={config.train.accumulate} parts; make it a multiple of {count * config.train.accumulate}"
        )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.variable_shapes["params"]))
    print(
        f"{parameters:,} parameters, batch {batch_size}, {count} {machine.upper()} in hosts of {hosts.devices}, "
        f"each with {hosts.memory:g} GB, {UTILIZATION:.0%} (assumed) of {hosts.tflops:g} TFLOP/s in bfloat16, "
        f"and a bandwidth of {hosts.link:g} GB/s within a host and {hosts.network:g} GB/s between hosts"
    )
    rows = [_row(config, model, devices, hosts, examples) for devices in tqdm.tqdm(layouts, "compiling", unit="layout")]
    _print_table(rows, hosts)
    return {"parameters": parameters, "machine": machine, "utilization": UTILIZATION, "rows": rows}


def _layouts(model: Model, count: int, machine: Machine) -> list[Devices]:
    """Returns the layouts to compare, those with fewer exchanges first."""
    host = min(count, machine.devices)
    sizes = [size for size in (1, 2, 4) if host % size == 0] if _is_transformer(model) else [1]
    return [
        Devices.create(num_devices=count, fsdp=fsdp, tensor=tensor)
        for tensor in sizes
        for fsdp in sorted({1, host // tensor, count // tensor})
    ]


def _is_transformer(model: Model) -> bool:
    """Returns whether `tensor` splits at least half of the parameters."""
    shapes = model.variable_shapes["params"]
    shardings = jax.tree.leaves(Devices.create(num_devices=2, tensor=2).state_sharding(shapes))
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    split = [size for size, sharding in zip(sizes, shardings, strict=True) if "tensor" in sharding.spec]
    return sum(split) >= sum(sizes) / 2


def _row(config: ConfigDict, model: Model, devices: Devices, machine: Machine, examples: int) -> dict[str, Any]:
    """Returns the memory of a device in GB, the GB that it exchanges, and estimated milliseconds."""
    lowered = lower(config, model, devices, config.train.batch_size, examples)
    flops = (lowered.cost_analysis() or {}).get("flops", 0.0)
    compiled = compile_layout(lowered)
    memory, exchanges = compiled.memory_analysis(), collectives(compiled.as_text() or "")
    size = {True: 0, False: 0}  # bytes, by whether they cross hosts
    for collective in exchanges:
        size[cost_model.crosses_hosts(collective, machine)] += collective.times * collective.size
    compute = flops / devices.num_devices / (machine.tflops * 1e12 * UTILIZATION)
    exchange = sum(cost_model.seconds(collective, machine) for collective in exchanges)
    return {
        "fsdp": devices.mesh.shape["fsdp"],
        "tensor": devices.mesh.shape["tensor"],
        "state GB": memory.argument_size_in_bytes / 1e9,
        "temporary GB": memory.temp_size_in_bytes / 1e9,
        "within GB": size[False] / 1e9,
        "between GB": size[True] / 1e9,
        "compute ms": compute * 1e3,
        "exchange ms": exchange * 1e3,
        "step ms": (compute + exchange) * 1e3,
    }


def _print_table(rows: list[dict[str, Any]], machine: Machine) -> None:
    print(" ".join(f"{name:>12}" for name in rows[0]))
    for row in rows:
        cells = [str(row[name]) if name in ("fsdp", "tensor") else f"{row[name]:,.3f}" for name in row]
        print(" ".join(f"{cell:>12}" for cell in cells))
    fits = [row for row in rows if row["state GB"] + row["temporary GB"] <= machine.memory]
    if not fits:
        print(f"no layout fits in {machine.memory:g} GB; lower train.batch_size, or raise train.accumulate")
        return
    best = min(fits, key=lambda row: row["step ms"])
    print(f"fastest that fits: --config.parallel.fsdp={best['fsdp']} --config.parallel.tensor={best['tensor']}")
