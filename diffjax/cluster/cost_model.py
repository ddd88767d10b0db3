"""Estimated time of the collectives of a program, by the bandwidth of the links they use.

The model is that of ring algorithms, without latencies: among n devices, each sends 2 (n - 1) / n of the bytes of an
all-reduce, and (n - 1) / n of those of an all-gather, a reduce-scatter or an all-to-all, at the bandwidth of the
slowest link. Each device has its own link to other hosts, so several devices of a host in one ring share the bytes.

Reference: Thakur et al. 2005, "Optimization of collective communication operations in MPICH"; the bandwidths of NCCL's
tests count bytes in the same way.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from diffjax.cluster.collectives import Collective

_SHARE = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0, "all-to-all": 1.0}
_RINGS = ("all-reduce", "all-gather", "reduce-scatter")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Hosts of several devices, from the vendors' figures.

    Attributes:
      tflops: dense peak of a device in bfloat16, TFLOP/s.
      memory: memory of a device, GB.
      link: bandwidth between devices of a host, GB/s in each direction.
      network: bandwidth of a device's link to other hosts, GB/s in each direction.
      devices: devices of a host.
    """

    tflops: float
    memory: float
    link: float
    network: float
    devices: int = 8


# Dense peak of a device in TFLOP/s, from the vendors: bfloat16, float32 (TF32 on NVIDIA's tensor cores; None: none).
_PEAKS: Mapping[str, tuple[float, float | None]] = {
    "H200": (989.0, 494.0),
    "H100": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "TPU v4": (275.0, None),
    "TPU v5 lite": (197.0, None),
    "TPU v5p": (459.0, None),
    "TPU v6 lite": (918.0, None),
}


def peak_tflops(device: str, dtype: str) -> float | None:
    """Returns the dense peak of a device, by the name that jax has for its kind, in TFLOP/s; None: not known."""
    for name, (half, single) in _PEAKS.items():
        if name in device:
            return half if dtype == "bfloat16" else single
    return None


MACHINES: Mapping[str, Machine] = {  # hosts of eight GPUs with NVLink and one InfiniBand adapter per GPU
    "a100": Machine(tflops=_PEAKS["A100"][0], memory=80, link=300, network=25),
    "h100": Machine(tflops=_PEAKS["H100"][0], memory=80, link=450, network=50),
    "h200": Machine(tflops=_PEAKS["H200"][0], memory=141, link=450, network=50),
}


def mesh_axes(collective: Collective, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes of a mesh along which the devices of a collective differ; none for one device.

    Args:
      mesh: sizes of the axes by name; the last axis has neighbouring devices.
    """
    places = np.unravel_index(collective.group, tuple(mesh.values()))
    return tuple(name for name, along in zip(mesh, places, strict=True) if np.ptp(along) > 0)


def crosses_hosts(collective: Collective, machine: Machine) -> bool:
    """Returns whether devices of several hosts take part."""
    return _hosts(collective, machine) > 1


def seconds(collective: Collective, machine: Machine) -> float:
    """Returns the estimated seconds of all executions of a collective; 0 for one device."""
    count = len(collective.group)
    if collective.kind == "collective-permute":
        share = 1.0
    elif count > 1:
        share = _SHARE[collective.kind] * (count - 1) / count
    else:
        return 0.0
    bandwidth = machine.link
    if crosses_hosts(collective, machine):
        per_host = count // _hosts(collective, machine) if collective.kind in _RINGS else 1
        bandwidth = min(machine.link, per_host * machine.network)
    return collective.times * collective.size * share / (bandwidth * 1e9)


def _hosts(collective: Collective, machine: Machine) -> int:
    return len({device // machine.devices for device in collective.group})
