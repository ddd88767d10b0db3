"""Placement of arrays on devices: a mesh with the axes `data`, `fsdp` and `tensor`, and two modes of running the step.

With several processes the mesh has the devices of all of them, and arrays are global.

The mode "pmap" runs the step as one program per device, with explicit collectives. The mode "jit" runs it on global
arrays, for which XLA inserts the collectives; it can also shard the parameters over the `fsdp` axis, and split the
layers of transformers over the `tensor` axis. Both modes give the same numbers.
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
# Layers of transformers by name, without the prefix "context_": those whose outputs are split over `tensor`, such as
# heads and hidden units, and those that take split inputs.
_SPLIT_OUTPUTS = ("q", "k", "v", "kv", "qkv", "mlp_in", "modulation", "modulation_out")
_SPLIT_INPUTS = ("out", "mlp_out")


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run, and the mode in which the step runs on them."""

    mesh: Mesh
    mode: str  # "jit" | "pmap"

    @classmethod
    def create(cls, *, mode: str = "jit", num_devices: int = 0, fsdp: int = 1, tensor: int = 1) -> "Devices":
        """Selects devices, the same number of each process.

        Args:
          mode: "jit" or "pmap".
          num_devices: number of devices of all processes; 0: all devices.
          fsdp: number of devices that share one copy of the parameters.
          tensor: number of devices that share the layers of a transformer, and each example.

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
        for name, size, rest in (("fsdp", fsdp, num_devices), ("tensor", tensor, num_devices // max(fsdp, 1))):
            if size < 1 or rest % size:
                by_fsdp = f" divided by parallel.fsdp={fsdp}" if rest != num_devices else ""
                raise UserError(f"parallel.{name}={size}: must divide the number of devices, {num_devices}{by_fsdp}")
            if mode == "pmap" and size > 1:
                raise UserError(f"parallel.{name}={size}: requires parallel.mode='jit' when it is above 1")
        local = {i: [device for device in available if device.process_index == i] for i in range(processes)}
        if num_devices // processes % tensor:
            raise UserError(
                f"parallel.tensor={tensor}: must divide the devices of a process, {num_devices // processes}"
            )
        if any(len(devices) < num_devices // processes for devices in local.values()):
            raise UserError(
                f"parallel.num_devices={num_devices}: each process must have {num_devices // processes}; lower it"
            )
        # The devices of a process are neighbours, so its share of a batch is contiguous, and copies of the parameters
        # stay within a process if `fsdp` and `tensor` permit.
        chosen = [device for i in range(processes) for device in local[i][: num_devices // processes]]
        return cls(Mesh(np.array(chosen).reshape(-1, fsdp, tensor), ("data", "fsdp", "tensor")), mode)

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    @property
    def num_shares(self) -> int:
        """Number of shares of a batch: devices, or groups of `tensor` devices."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def check_batch(self, batch_size: int, accumulate: int, group: int = 1) -> None:
        """Checks that all devices get equal shares of each part of the batch, of whole groups of examples.

        Args:
          group: number of examples that the loss compares with each other.

        Raises:
          UserError: the batch cannot be divided.
        """
        validate_integer("train.batch_size", batch_size)
        if accumulate < 1 or batch_size % (self.num_shares * accumulate * group):
            groups = f", in groups of {group} (diffusion.loss)" if group > 1 else ""
            by_tensor = f" / parallel.tensor={self.mesh.shape['tensor']}" if self.num_shares < self.num_devices else ""
            raise UserError(
                f"train.batch_size={batch_size}: cannot be divided over {self.num_devices}{by_tensor} devices "
                f"(parallel.num_devices) and train.accumulate={accumulate} parts{groups}; make it a multiple of "
                f"{self.num_shares * max(accumulate, 1) * group}"
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
        """Returns the sharding of each leaf, replicated where no axis of the mesh splits it.

        Heads and hidden units of transformers are split over `tensor`, and of the other dimensions the largest that is
        divisible over `fsdp`.
        """
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: NamedSharding(self.mesh, self._spec(keys, leaf.shape)), shapes
        )

    def _spec(self, keys: tuple[Any, ...], shape: tuple[int, ...]) -> P:
        axes: list[str | None] = [None] * len(shape)
        if (split := _tensor_dimension(keys, len(shape))) is not None and shape[split] % self.mesh.shape["tensor"] == 0:
            axes[split] = "tensor"
        divisible = [i for i, size in enumerate(shape) if size % self.mesh.shape["fsdp"] == 0 and not axes[i]]
        if divisible:
            axes[max(divisible, key=lambda i: shape[i])] = "fsdp"
        return P(*(axis if axis and self.mesh.shape[axis] > 1 else None for axis in axes))

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
        replicated, one_step = NamedSharding(self.mesh, P()), make_step(axis_name=None)

        def under_mesh(*arguments):  # networks split their activations: nn/partitioning.py
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return one_step(*arguments)

        step = jax.jit(
            under_mesh if self.mesh.shape["tensor"] > 1 else one_step,
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


def tensor_share(shapes: Any) -> float:
    """Returns the share of the parameters, given by their shapes, that the axis `tensor` splits."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    split = sum(leaf.size for keys, leaf in leaves if _tensor_dimension(keys, len(leaf.shape)) is not None)
    return split / max(1, sum(leaf.size for _, leaf in leaves))


def _tensor_dimension(keys: tuple[Any, ...], dimensions: int) -> int | None:
    """Returns the dimension of a parameter, or of its moments and averages, that is split over `tensor`; None: none."""
    *_, layer, leaf = ["", "", *jax.tree_util.keystr(keys, simple=True, separator="/").split("/")]
    layer = layer.removeprefix("context_")
    if layer in _SPLIT_OUTPUTS and (leaf, dimensions) in (("kernel", 2), ("bias", 1)):
        return dimensions - 1
    return 0 if layer in _SPLIT_INPUTS and (leaf, dimensions) == ("kernel", 2) else None


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
