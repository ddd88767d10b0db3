"""Placement of arrays on devices: a mesh with the axes `data` and `fsdp`, and two modes of running the step on it.

With several processes the mesh has the devices of all of them, and arrays are global.

The mode "pmap" runs the step as one program per device, with explicit collectives. The mode "jit" runs it on global
arrays, for which XLA inserts the collectives; it can also shard the parameters over the `fsdp` axis. Both modes give
the same numbers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.cluster import multihost
from diffjax.errors import UserError, machine_memory, unknown, validate_integer
from diffjax.training.step import Step

_BATCH = P(("data", "fsdp"))  # a batch is split over both axes


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run, and the mode in which the step runs on them."""

    mesh: Mesh
    mode: str  # "jit" | "pmap"

    @classmethod
    def create(cls, *, mode: str = "jit", num_devices: int = 0, fsdp: int = 1) -> "Devices":
        """Selects devices, the same number of each process.

        Args:
          mode: "jit" or "pmap".
          num_devices: number of devices of all processes; 0: all devices.
          fsdp: number of devices that share one copy of the parameters.

        Raises:
          UserError: the layout is not possible on these devices.
        """
        available, processes = jax.devices(), jax.process_count()
        num_devices = validate_integer("parallel.num_devices", num_devices, low=0) or len(available)
        if mode not in ("jit", "pmap"):
            raise unknown("parallel.mode", mode, ("jit", "pmap"))
        if num_devices > len(available):
            have = f"these {processes} processes have" if processes > 1 else "this machine has"
            raise UserError(f"parallel.num_devices={num_devices}: {have} {len(available)}; lower it, or set 0 for all")
        if num_devices % processes:
            raise UserError(
                f"parallel.num_devices={num_devices}: must be a multiple of the number of processes, {processes}"
            )
        if fsdp < 1 or num_devices % fsdp:
            raise UserError(f"parallel.fsdp={fsdp}: must divide the number of devices, {num_devices}")
        if mode == "pmap" and fsdp > 1:
            raise UserError(f"parallel.fsdp={fsdp}: requires parallel.mode='jit' when it is above 1")
        local = {i: [device for device in available if device.process_index == i] for i in range(processes)}
        if any(len(devices) < num_devices // processes for devices in local.values()):
            raise UserError(
                f"parallel.num_devices={num_devices}: each process must have {num_devices // processes}; lower it"
            )
        # The devices of a process are neighbours, so its share of a batch is contiguous, and copies of the parameters
        # stay within a process if `fsdp` permits.
        chosen = [device for i in range(processes) for device in local[i][: num_devices // processes]]
        return cls(Mesh(np.array(chosen).reshape(-1, fsdp), ("data", "fsdp")), mode)

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    def check_batch(self, batch_size: int, accumulate: int, group: int = 1) -> None:
        """Checks that all devices get equal shares of each part of the batch, of whole groups of examples.

        Args:
          group: number of examples that the loss compares with each other.

        Raises:
          UserError: the batch cannot be divided.
        """
        validate_integer("train.batch_size", batch_size)
        if accumulate < 1 or batch_size % (self.num_devices * accumulate * group):
            groups = f", in groups of {group} (diffusion.loss)" if group > 1 else ""
            raise UserError(
                f"train.batch_size={batch_size}: cannot be divided over {self.num_devices} devices "
                f"(parallel.num_devices) and train.accumulate={accumulate} parts{groups}; make it a multiple of "
                f"{self.num_devices * max(accumulate, 1) * group}"
            )

    def check_state(self, shapes: Any) -> None:
        """Checks that a training state of these shapes fits in the memory. Raises UserError if not."""
        shares = jax.tree.map(
            lambda leaf, where: math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
            shapes,
            self.state_sharding(shapes),
        )
        needed, available = sum(jax.tree.leaves(shares)), self._memory()
        if needed > available:
            raise UserError(
                f"the training state alone takes {needed / 2**30:,.0f} GiB per device, which has "
                f"{available / 2**30:,.0f} GiB; make the networks smaller (channels, width, layers), or raise "
                "parallel.fsdp to shard the state over more devices"
            )

    def _memory(self) -> float:
        """Returns the memory of a device in bytes. CPU devices share the memory of their machine."""
        local = list(self._local_mesh.devices.flat)
        stats = local[0].memory_stats() or {}
        return stats.get("bytes_limit", machine_memory() / len(local))

    def put_batch(self, batch: Any) -> Any:
        """Puts this process's share of a batch, host arrays [B / processes, ...], on its devices, split by example."""
        if self.mode == "pmap":
            mesh = self._local_mesh
            batch = jax.tree.map(lambda x: x.reshape(mesh.size, -1, *x.shape[1:]), batch)
            return jax.device_put(batch, NamedSharding(mesh, _BATCH))
        return self.put_global_batch(batch)

    def put_global_batch(self, batch: Any) -> Any:
        """Puts this process's share of a batch on its devices as global arrays, for `compile_global`."""
        sharding = NamedSharding(self.mesh, _BATCH)
        if multihost.is_single_process():
            return jax.device_put(batch, sharding)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def shaped(self, batch: Any) -> Any:
        """Returns a global batch in the shapes that compiled steps take."""
        if self.mode == "jit":
            return batch
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.num_devices, x.shape[0] // self.num_devices, *x.shape[1:]), x.dtype),
            batch,
        )

    @property
    def _local_mesh(self) -> Mesh:
        return self.mesh if multihost.is_single_process() else self.mesh.local_mesh

    def state_sharding(self, shapes: Any) -> Any:
        """Returns the sharding of each leaf: its largest divisible dimension over the `fsdp` axis, else replicated."""
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, self._spec(leaf.shape)), shapes)

    def _spec(self, shape: tuple[int, ...]) -> P:
        parts = self.mesh.shape["fsdp"]
        divisible = [i for i, size in enumerate(shape) if size % parts == 0]
        if parts == 1 or not divisible:
            return P()
        largest = max(divisible, key=lambda i: shape[i])
        return P(*(["fsdp" if i == largest else None for i in range(len(shape))]))

    def replicate(self, tree: Any) -> Any:
        """Copies host arrays, the same in every process, to every device."""
        return multihost.put(tree, NamedSharding(self.mesh, P()))

    def as_global(self, tree: Any) -> Any:
        """Returns a part of the training state as global arrays, for `compile_global`."""
        is_local = self.mode == "pmap" and multihost.is_single_process()  # else steps return global arrays
        return self.replicate(tree) if is_local else tree

    def compile_global(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of global arrays, compiled for the devices; its results are on all of them."""
        compiled = jax.jit(function, out_shardings=NamedSharding(self.mesh, P()))
        return compiled if multihost.is_single_process() else _start_together(compiled)

    def on_host(self, tree: Any) -> Any:
        """Copies global arrays to the memory of every process. All processes must call it."""
        if multihost.is_single_process():
            return tree
        whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(self.mesh, P()))(tree)
        return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0)), whole)

    def compile(self, make_step: Callable[..., Step], state_shapes: Any) -> Step:
        """Returns `make_step(axis_name=...)` compiled for the devices. The step donates its state.

        The step takes batches from `put_batch` and frozen variables from `replicate`.
        """
        if self.mode == "pmap":
            devices = list(self.mesh.devices.flat)
            spmd = functools.partial(jax.pmap, axis_name="data", in_axes=(None, 0, None), out_axes=(None, None))
            step = spmd(make_step(axis_name="data"), devices=devices, donate_argnums=0)
            return step if multihost.is_single_process() else self._on_global_arrays(step)
        state, batch = self.state_sharding(state_shapes), NamedSharding(self.mesh, _BATCH)
        replicated = NamedSharding(self.mesh, P())
        step = jax.jit(
            make_step(axis_name=None),
            donate_argnums=0,
            in_shardings=(state, batch, replicated),
            out_shardings=(state, replicated),
        )
        return step if multihost.is_single_process() else _start_together(step)

    def _on_global_arrays(self, step: Step) -> Step:
        """Wraps a step of pmap, which takes and returns arrays of this process, to take and return global arrays."""
        local_sharding, global_sharding = NamedSharding(self._local_mesh, P()), NamedSharding(self.mesh, P())

        def reshard(sharding, tree):
            def with_sharding(leaf):
                pieces = [shard.data for shard in leaf.addressable_shards]
                return jax.make_array_from_single_device_arrays(leaf.shape, sharding, pieces)

            return jax.tree.map(with_sharding, tree)

        def run(state, batch, frozen):
            return reshard(
                global_sharding, step(reshard(local_sharding, state), batch, reshard(local_sharding, frozen))
            )

        return run


def _start_together(step: Any) -> Any:
    """Wraps a step so that it starts when all processes have compiled it, as collectives time out after 30 seconds.

    It does not work for pmap, whose compiled programs take no global arrays (jax 0.10).
    """
    compiled = None

    def run(*arguments):
        nonlocal compiled
        if compiled is None:
            compiled = step.lower(*arguments).compile()
            multihost.barrier("compiled")
        return compiled(*arguments)

    return run
