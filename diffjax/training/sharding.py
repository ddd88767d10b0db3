"""Where arrays live: one mesh with the axes `data` and `fsdp`, and the two ways to run the training step over it.

Where there are several processes (`hosts`), the mesh is over the devices of all, and arrays are global.

"pmap" runs the step as one SPMD program per device, with its collectives written out. "jit" runs it on global arrays
and lets XLA place the collectives; there the parameters may also be spread over the `fsdp` axis. Both give the same
numbers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.cluster import multihost
from diffjax.errors import UserError, checked_whole, machine_memory, unknown
from diffjax.training.step import Step

_EVERYWHERE = P(("data", "fsdp"))  # a batch is split over both axes


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run and how a step runs on them."""

    mesh: Mesh
    mode: str  # "jit" | "pmap"

    @classmethod
    def create(cls, *, mode: str = "jit", count: int = 0, fsdp: int = 1) -> "Devices":
        """`count` devices (0: all of them), as many of each process, `fsdp` of them to each copy of the parameters."""
        everywhere, processes = jax.devices(), jax.process_count()
        count = checked_whole("parallel.count", count, low=0) or len(everywhere)
        if mode not in ("jit", "pmap"):
            raise unknown("parallel.mode", mode, ("jit", "pmap"))
        if count > len(everywhere):
            have = f"these {processes} processes have" if processes > 1 else "this machine has"
            raise UserError(f"parallel.count={count}, but {have} {len(everywhere)}: lower it, or 0 for all")
        if count % processes:
            raise UserError(
                f"parallel.count={count} is of all {processes} processes together: make it a multiple of that"
            )
        if fsdp < 1 or count % fsdp:
            raise UserError(f"parallel.fsdp={fsdp} does not divide the {count} devices")
        if mode == "pmap" and fsdp > 1:
            raise UserError("parallel.fsdp > 1 spreads the parameters, which needs parallel.mode='jit'")
        own = {i: [device for device in everywhere if device.process_index == i] for i in range(processes)}
        if any(len(devices) < count // processes for devices in own.values()):
            raise UserError(f"parallel.count={count}: some process has fewer than {count // processes} devices")
        # One process's devices are neighbours: its share of a batch is one piece, and copies of the parameters stay
        # within it where `fsdp` allows.
        chosen = [device for i in range(processes) for device in own[i][: count // processes]]
        return cls(Mesh(np.array(chosen).reshape(-1, fsdp), ("data", "fsdp")), mode)

    @property
    def count(self) -> int:
        return self.mesh.size

    def check_batch(self, batch_size: int, accumulate: int) -> None:
        """Raises UserError unless every device gets the same share of every part of the batch."""
        checked_whole("train.batch_size", batch_size)
        if accumulate < 1 or batch_size % (self.count * accumulate):
            raise UserError(
                f"train.batch_size={batch_size} does not divide over {self.count} devices (parallel.count) x "
                f"train.accumulate={accumulate}: make it a multiple of {self.count * max(accumulate, 1)}"
            )

    def check_state(self, shapes) -> None:
        """Raises UserError for a training state, of which these are the shapes, that is larger than the memory."""
        shares = jax.tree.map(
            lambda leaf, where: math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
            shapes,
            self.state_sharding(shapes),
        )
        needed, there = sum(jax.tree.leaves(shares)), self._memory()
        if needed > there:
            raise UserError(
                f"the training state alone takes {needed / 2**30:,.0f} GiB on a device that has {there / 2**30:,.0f}: "
                "make the networks smaller (channels, width, layers), or spread it over more devices by parallel.fsdp"
            )

    def _memory(self) -> float:
        """Bytes of a device; CPUs share their machine's."""
        own = self._local_mesh.devices.flat
        stats = own[0].memory_stats() or {}
        return stats.get("bytes_limit", machine_memory() / len(own))

    def put_batch(self, batch):
        """This process's share of a batch, host arrays [B / processes, ...], to the devices, split over the batch."""
        if self.mode == "pmap":
            mesh = self._local_mesh
            batch = jax.tree.map(lambda x: x.reshape(mesh.size, -1, *x.shape[1:]), batch)
            return jax.device_put(batch, NamedSharding(mesh, _EVERYWHERE))
        sharding = NamedSharding(self.mesh, _EVERYWHERE)
        if multihost.alone():
            return jax.device_put(batch, sharding)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def shaped(self, batch):
        """The shapes of a whole batch, as `compile`d steps take them."""
        if self.mode == "jit":
            return batch
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.count, x.shape[0] // self.count, *x.shape[1:]), x.dtype), batch
        )

    @property
    def _local_mesh(self) -> Mesh:
        return self.mesh if multihost.alone() else self.mesh.local_mesh

    def state_sharding(self, shapes):
        """For each leaf a copy everywhere or, over an `fsdp` axis, its largest divisible dimension spread."""
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, self._spec(leaf.shape)), shapes)

    def _spec(self, shape: tuple[int, ...]) -> P:
        parts = self.mesh.shape["fsdp"]
        divisible = [i for i, size in enumerate(shape) if size % parts == 0]
        if parts == 1 or not divisible:
            return P()
        largest = max(divisible, key=lambda i: shape[i])
        return P(*(["fsdp" if i == largest else None for i in range(len(shape))]))

    def put_everywhere(self, tree):
        """A copy of host arrays, the same in every process, on every device."""
        return multihost.put(tree, NamedSharding(self.mesh, P()))

    def on_host(self, tree):
        """The whole of arrays of the mesh in every process's memory; all of them call it."""
        if multihost.alone():
            return tree
        whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(self.mesh, P()))(tree)
        return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0)), whole)

    def compile(self, make_step: Callable[..., Step], state_shapes) -> Step:
        """Compiles `make_step(axis_name=...)`, the state donated.

        Batches are those of `put_batch`, frozen variables are everywhere.
        """
        if self.mode == "pmap":
            devices = list(self.mesh.devices.flat)
            spmd = functools.partial(jax.pmap, axis_name="data", in_axes=(None, 0, None), out_axes=(None, None))
            step = spmd(make_step(axis_name="data"), devices=devices, donate_argnums=0)
            return step if multihost.alone() else self._on_global_arrays(step)
        state, batch = self.state_sharding(state_shapes), NamedSharding(self.mesh, _EVERYWHERE)
        everywhere = NamedSharding(self.mesh, P())
        step = jax.jit(
            make_step(axis_name=None),
            donate_argnums=0,
            in_shardings=(state, batch, everywhere),
            out_shardings=(state, everywhere),
        )
        return step if multihost.alone() else _begun_together(step)

    def _on_global_arrays(self, step: Step) -> Step:
        """A step of pmap, which knows this process's copies of the state, for those of all processes."""
        here, everywhere = NamedSharding(self._local_mesh, P()), NamedSharding(self.mesh, P())

        def seen_from(sharding, tree):
            pieces = lambda leaf: [shard.data for shard in leaf.addressable_shards]  # noqa: E731
            return jax.tree.map(
                lambda leaf: jax.make_array_from_single_device_arrays(leaf.shape, sharding, pieces(leaf)), tree
            )

        def run(state, batch, frozen):
            return seen_from(everywhere, step(seen_from(here, state), batch, seen_from(here, frozen)))

        return run


def _begun_together(step: Step) -> Step:
    """A step that no process begins before all have compiled it: exchanges wait but half a minute for one another.

    Not of pmap, whose compiled programs take no arguments of several processes (jax 0.10).
    """
    compiled = None

    def run(*given):
        nonlocal compiled
        if compiled is None:
            compiled = step.lower(*given).compile()
            multihost.barrier("compiled")
        return compiled(*given)

    return run
