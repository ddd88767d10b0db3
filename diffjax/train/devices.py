"""Where arrays live: one mesh with the axes `data` and `fsdp`, and the two ways to run the training step over it.

"pmap" runs the step as one SPMD program per device, with its collectives written out. "jit" runs it on global arrays
and lets XLA place the collectives; there the parameters may also be spread over the `fsdp` axis. Both give the same
numbers.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.errors import UserError, checked_whole, unknown
from diffjax.train.step import Step

_EVERYWHERE = P(("data", "fsdp"))  # a batch is split over both axes


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run and how a step runs on them."""

    mesh: Mesh
    mode: str  # "jit" | "pmap"

    @classmethod
    def create(cls, *, mode: str = "jit", count: int = 0, fsdp: int = 1) -> "Devices":
        """`count` local devices (0: all of them), `fsdp` of them to each copy of the parameters."""
        local = jax.local_devices()
        count = checked_whole("parallel.count", count, low=0) or len(local)
        if mode not in ("jit", "pmap"):
            raise unknown("parallel.mode", mode, ("jit", "pmap"))
        if count > len(local):
            raise UserError(f"parallel.count={count}, but this machine has {len(local)}: lower it, or 0 for all")
        if fsdp < 1 or count % fsdp:
            raise UserError(f"parallel.fsdp={fsdp} does not divide the {count} devices")
        if mode == "pmap" and fsdp > 1:
            raise UserError("parallel.fsdp > 1 spreads the parameters, which needs parallel.mode='jit'")
        return cls(Mesh(np.array(local[:count]).reshape(-1, fsdp), ("data", "fsdp")), mode)

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
        stats = self.mesh.devices.flat[0].memory_stats() or {}
        return stats.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / self.count)

    def put_batch(self, batch):
        """Host arrays [B, ...] to the devices, split over the batch."""
        if self.mode == "pmap":
            batch = jax.tree.map(lambda x: x.reshape(self.count, -1, *x.shape[1:]), batch)
        return jax.device_put(batch, NamedSharding(self.mesh, _EVERYWHERE))

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
        """A copy of host arrays on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def compile(self, make_step: Callable[..., Step], state_shapes) -> Step:
        """Compiles `make_step(axis_name=...)`, the state donated.

        Batches are those of `put_batch`, frozen variables are everywhere.
        """
        if self.mode == "pmap":
            devices = list(self.mesh.devices.flat)
            spmd = functools.partial(jax.pmap, axis_name="data", in_axes=(None, 0, None), out_axes=(None, None))
            return spmd(make_step(axis_name="data"), devices=devices, donate_argnums=0)
        state, batch = self.state_sharding(state_shapes), NamedSharding(self.mesh, _EVERYWHERE)
        everywhere = NamedSharding(self.mesh, P())
        return jax.jit(
            make_step(axis_name=None),
            donate_argnums=0,
            in_shardings=(state, batch, everywhere),
            out_shardings=(state, everywhere),
        )
