"""The metrics that compare samples with real images, with their class or with their caption, and their figures' names.

A metric's name says whose features it compares: `fid` and `kid` are of FID's Inception alone; `fd_effnet_lite0` and
`fd_pixels` are the same distance between other features, and their values are not comparable with it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from diffjax.evals import frechet, inception_score, kernel, moments, neighbours, resampling
from diffjax.evals.reference import Reference
from diffjax.evals.resampling import Estimate
from diffjax.measures import alignment

_REPEATS = 20  # of the bootstrap
_SPLITS = 10  # of the Inception score

Values = dict[str, Estimate]


class Column(NamedTuple):
    """Of a table of figures."""

    heading: str
    better: str  # "lower" | "higher"

    @property
    def title(self) -> str:
        return f"{self.heading} ({self.better} is better)"


class Compared(NamedTuple):
    """What a metric is told."""

    features: Mapping[str, np.ndarray]  # of the samples, float32 [N, D] each
    reference: Reference
    distance: Callable[[moments.Moments], float]  # the Frechet distance to the reference's pooled features
    thorough: bool  # error bars by bootstrap, and FID at infinity: minutes
    seed: int


class Metric(NamedTuple):
    """A way to compare features."""

    network: str
    columns: Mapping[str, Column]
    measure: Callable[[Compared], Values]


def _frechet(name: str, heading: str, network: str) -> Metric:
    def measure(c: Compared) -> Values:
        pooled = c.features["pooled"]
        value = c.distance(moments.of(pooled))
        if not c.thorough:
            return {name: Estimate(value, None)}
        spread = resampling.bootstrap(
            lambda some: c.distance(moments.of(some)), (pooled,), repeats=_REPEATS, seed=c.seed
        )
        limit = frechet.at_infinity(pooled, c.distance, seed=c.seed)
        return {name: Estimate(value, spread), f"{name}_infinity": Estimate(limit.value, limit.standard_error)}

    columns = {name: Column(heading, "lower"), f"{name}_infinity": Column(f"{heading} infinity", "lower")}
    return Metric(network, columns, measure)


def _spatial_frechet() -> Metric:
    def measure(c: Compared) -> Values:
        found = moments.of(c.features["spatial"])
        return {"sfid": Estimate(frechet.frechet_distance(found, c.reference.moments["spatial"]), None)}

    return Metric("inception", {"sfid": Column("sFID", "lower")}, measure)


def _kernel(name: str, heading: str, network: str) -> Metric:
    def measure(c: Compared) -> Values:
        return {name: kernel.kernel_distance(c.features["pooled"], c.reference.features, seed=c.seed)}

    return Metric(network, {name: Column(heading, "lower")}, measure)


def _inception_score() -> Metric:
    def measure(c: Compared) -> Values:
        mean, deviation = inception_score.inception_score(c.features["logits"], splits=_SPLITS)
        return {"is": Estimate(mean, deviation / np.sqrt(_SPLITS))}

    return Metric("inception", {"is": Column("IS", "higher")}, measure)


def _manifold(network: str) -> Metric:
    columns = {f"{name}_{network}": Column(name, "higher") for name in ("precision", "recall", "density", "coverage")}

    def measure(c: Compared) -> Values:
        real, fake = c.reference.features, c.features["pooled"]
        few = min(len(real), len(fake))  # of as many, or the two nearest-neighbour radii would differ in meaning
        nearest = {k: neighbours.manifold(real[:few], fake[:few], k=k) for k in (3, 5)}
        values = nearest[3].precision, nearest[3].recall, nearest[5].density, nearest[5].coverage
        return {name: Estimate(float(value), None) for name, value in zip(columns, values, strict=True)}

    return Metric(network, columns, measure)


def _cmmd() -> Metric:
    def measure(c: Compared) -> Values:
        features, real = c.features["pooled"], c.reference.features
        return {
            "cmmd": Estimate(1000 * kernel.squared_mmd(features, real, kernel.gaussian(10.0), unbiased=False), None)
        }

    return Metric("clip", {"cmmd": Column("CMMD", "lower")}, measure)


COMPARISONS = {
    "fid": _frechet("fid", "FID", "inception"),
    "sfid": _spatial_frechet(),
    "kid": _kernel("kid", "KID", "inception"),
    "is": _inception_score(),
    "manifold_inception": _manifold("inception"),
    "fd_effnet_lite0": _frechet("fd_effnet_lite0", "FD-EffNetLite0", "effnet_lite0"),
    "kd_effnet_lite0": _kernel("kd_effnet_lite0", "KD-EffNetLite0", "effnet_lite0"),
    "manifold_effnet_lite0": _manifold("effnet_lite0"),
    "fd_pixels": _frechet("fd_pixels", "FD-pixels", "pixels"),
    "kd_pixels": _kernel("kd_pixels", "KD-pixels", "pixels"),
    "manifold_pixels": _manifold("pixels"),
    "cmmd": _cmmd(),
}
BY_CLASS = {  # of samples that have a label
    "recognised": Column("recognised", "higher"),
    "cas": Column("CAS", "higher"),
}
BY_CLIP = {  # of samples that have a caption, as the next
    "clip_score": Column("CLIP score", "higher"),
    "r_precision": Column("R-precision", "higher"),
}
BY_READING = {
    name: Column("captions shown" if name == "captions" else f"of that: {name.removeprefix('caption_')}", "higher")
    for name in alignment.PARTS
}
BY_CAPTION = (*BY_CLIP, "captions")
NAMES = (*COMPARISONS, *BY_CLASS, *BY_CAPTION)


def columns_of(name: str) -> Mapping[str, Column]:
    """The figures that a metric of NAMES may give."""
    if name in COMPARISONS:
        return COMPARISONS[name].columns
    return BY_READING if name == "captions" else {name: (BY_CLASS | BY_CLIP)[name]}


COLUMNS = {column: about for name in NAMES for column, about in columns_of(name).items()}
