"""The metrics that compare samples with real images, with their class or with their caption, and their figures' names.

A metric's name says whose features it compares: `fid` and `kid` are of FID's Inception alone; `fd_effnet_lite0` and
`fd_pixels` are the same distance between other features, and their values are not comparable with it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffjax.evaluation import alignment
from diffjax.metrics import frechet, inception_score, kernel, moments, neighbours, resampling
from diffjax.metrics.reference import Reference
from diffjax.metrics.resampling import Estimate
from diffjax.numbers import number, with_error

_REPEATS = 20  # of the bootstrap
_SPLITS = 10  # of the Inception score
_BLOCKS = 10  # that are left out in turn for the errors of nearest neighbours

Values = dict[str, Estimate]


REAL = "closest to real images"  # a value above that of real images is not better


class Column(NamedTuple):
    """A column of a table of figures."""

    heading: str
    better: str  # "lower" | "higher" | REAL, ...
    lowest: float | None = None  # least possible value; a lower estimate is not resolved. None: such values are kept

    @property
    def title(self) -> str:
        return f"{self.heading} ({self.better} is better)"


class Compared(NamedTuple):
    """Inputs of a metric."""

    features: Mapping[str, np.ndarray]  # of the samples, float32 [N, D] each
    reference: Reference
    distance: Callable[[moments.Moments], float]  # the Frechet distance to the reference's pooled features
    errors: bool  # standard errors by resampling: with 2048 features up to a minute on two cores
    limit: bool  # Frechet distances extrapolated to infinitely many samples: as long again
    seed: int


class Metric(NamedTuple):
    """A way to compare features."""

    network: str
    columns: Mapping[str, Column]
    measure: Callable[[Compared], Values]
    least: int  # samples, and real images, that it needs
    least_for_limit: int = 0  # samples for the extrapolation


def _frechet(name: str, heading: str, network: str) -> Metric:
    def measure(c: Compared) -> Values:
        pooled = c.features["pooled"]
        found = {name: Estimate(c.distance(moments.of(pooled)), _spread(pooled, c.distance, c))}
        if c.limit:
            limit = frechet.at_infinity(pooled, c.distance, seed=c.seed)
            found[f"{name}_infinity"] = Estimate(limit.value, limit.standard_error)
        return found

    columns = {name: Column(heading, "lower"), f"{name}_infinity": Column(f"{heading} infinity", "lower", lowest=0.0)}
    return Metric(network, columns, measure, least=2, least_for_limit=4)  # 4: two sizes for the line


def _spread(features: np.ndarray, distance: Callable[[moments.Moments], float], c: Compared) -> float | None:
    """Returns the standard error of a Frechet distance."""
    if not c.errors:
        return None
    return resampling.bootstrap(lambda some: distance(moments.of(some)), (features,), repeats=_REPEATS, seed=c.seed)


def _spatial_frechet() -> Metric:
    def measure(c: Compared) -> Values:
        spatial, distance = c.features["spatial"], frechet.distance_to(c.reference.moments["spatial"])
        return {"sfid": Estimate(distance(moments.of(spatial)), _spread(spatial, distance, c))}

    return Metric("inception", {"sfid": Column("sFID", "lower")}, measure, least=2)


def _kernel(name: str, heading: str, network: str) -> Metric:
    def measure(c: Compared) -> Values:
        return {name: kernel.kernel_distance(c.features["pooled"], c.reference.features, seed=c.seed)}

    return Metric(network, {name: Column(heading, "lower")}, measure, least=4)


def _inception_score() -> Metric:
    def measure(c: Compared) -> Values:
        mean, deviation = inception_score.inception_score(c.features["logits"], splits=_SPLITS)
        return {"is": Estimate(mean, deviation / np.sqrt(_SPLITS - 1))}  # the deviation is that of a population

    return Metric("inception", {"is": Column("IS", "higher")}, measure, least=_SPLITS)


def _manifold(network: str) -> Metric:
    kinds = {"precision": "higher", "recall": "higher", "density": "closest to 1", "coverage": "higher"}
    columns = {f"{name}_{network}": Column(name, better) for name, better in kinds.items()}

    def measure(c: Compared) -> Values:
        real, fake = c.reference.features, c.features["pooled"]
        few = min(len(real), len(fake))  # of as many, or the two nearest-neighbour radii would differ in meaning

        def values(some: np.ndarray) -> np.ndarray:
            nearest = {k: neighbours.manifold(real[:few], some, k=k) for k in (3, 5)}
            return np.array([getattr(nearest[3 if name in ("precision", "recall") else 5], name) for name in kinds])

        errors = [None] * len(kinds)
        if c.errors and few >= 2 * _BLOCKS:
            # A share of 0 or 1 may have no spread; its error is then that of a share of as many tries.
            least = [0.0 if name == "density" else resampling.share(np.ones(few)).standard_error for name in kinds]
            errors = np.maximum(resampling.jackknife(values, fake[:few], blocks=_BLOCKS, seed=c.seed), least).tolist()
        found = zip(columns, values(fake[:few]).tolist(), errors, strict=True)
        return {name: Estimate(value, error) for name, value, error in found}

    return Metric(network, columns, measure, least=6)  # 6: five neighbours


def _cmmd() -> Metric:
    def measure(c: Compared) -> Values:
        sets, gaussian = (c.features["pooled"], c.reference.features), kernel.gaussian(10.0)
        error = 1000 * kernel.mmd_error(*sets, gaussian) if c.errors else None
        return {"cmmd": Estimate(1000 * kernel.squared_mmd(*sets, gaussian, unbiased=False), error)}

    return Metric("clip", {"cmmd": Column("CMMD", "lower")}, measure, least=4)


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
    "recognised": Column("recognised", REAL),
    "cas": Column("CAS", "higher"),
}
BY_CLIP = {  # of samples that have a caption, as the next
    "clip_score": Column("CLIP score", "higher"),
    "r_precision": Column("R-precision", "higher"),
}
BY_READING = {
    name: Column("captions shown" if name == "captions" else f"of that: {name.removeprefix('caption_')}", "higher")
    for name in alignment.PARTS
} | {"caption_relation_share": Column("  objects identified", "higher")}
BY_CAPTION = (*BY_CLIP, "captions")
NAMES = (*COMPARISONS, *BY_CLASS, *BY_CAPTION)


def columns_of(name: str) -> Mapping[str, Column]:
    """The figures that a metric of NAMES may give."""
    if name in COMPARISONS:
        return COMPARISONS[name].columns
    return BY_READING if name == "captions" else {name: (BY_CLASS | BY_CLIP)[name]}


COLUMNS = {column: about for name in NAMES for column, about in columns_of(name).items()}


def figure(column: str, estimate: Estimate, baseline: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the entry of a result file for a figure.

    Args:
      column: of COLUMNS.
      estimate: its value and standard error.
      baseline: of `Measurer.baselines`.

    Returns:
      "value" and "standard_error", and the baseline's entries. Of an estimate below the column's lowest value "value"
      is None, and "estimate" is the number.
    """
    entry = estimate._asdict() | dict(baseline or {})
    if not _resolved(column, estimate):
        entry |= {"value": None, "estimate": estimate.value}
    return entry


def text(column: str, estimate: Estimate, count: int, baseline: Mapping[str, Any] | None = None) -> str:
    """Returns the text of a figure of `count` images: its value, its error, and what it should be compared with."""
    value = with_error(*estimate)
    if estimate.value is None:
        value = "– (not defined on these samples)"
    elif not _resolved(column, estimate):
        value = f"not resolved with {count} samples (estimate {value})"
    elif estimate.value < 0:
        value += "  (an unbiased estimate of a number that is not negative)"
    beside = []
    if "real" in (baseline or {}):
        beside.append(f"real images {with_error(*baseline['real'].values())}")
    if "chance" in (baseline or {}):
        beside.append(f"chance {number(baseline['chance'])}")
    return value + (f"  ({', '.join(beside)})" if beside else "")


def _resolved(column: str, estimate: Estimate) -> bool:
    lowest = COLUMNS[column].lowest
    return lowest is None or estimate.value is None or estimate.value >= lowest
