"""Activations of transformers split over devices, where the step runs under a mesh with the axis `tensor`.

Reference: Shoeybi et al. 2019, "Megatron-LM" (heads and hidden units are split); Korthikanti et al. 2022, "Reducing
activation recomputation in large transformer models" (tokens are split between those layers).
"""

import math

import jax
from jax import Array
from jax.sharding import PartitionSpec as P

_MESH_AXES = {"batch": ("data", "fsdp"), "tokens": ("tensor",), "heads": ("tensor",)}


def partition(x: Array, *axes: str | None) -> Array:
    """Returns `x` with named axes split over devices; outside such a mesh, `x` as it is.

    Args:
      x: activations.
      axes: for each axis "batch", "tokens", "heads", or None: not split. Nor is one that the devices do not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "tensor" not in mesh.axis_names:
        return x

    def over(size: int, axis: str | None) -> tuple[str, ...] | None:
        names = _MESH_AXES[axis] if axis else ()
        return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None

    return jax.lax.with_sharding_constraint(x, P(*map(over, x.shape, axes)))
