"""Metrics that compare samples with real images, with their class or with their caption.

The name of a metric contains its features: `fid` and `kid` use FID's Inception only. `fd_dinov2`, `fd_effnet_lite0`,
`fd_classifier` and `fd_pixels` are the same distance between other features, and their values are not comparable with
FID.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffjax.evaluation import alignment
from diffjax.metrics import frechet, inception_score, kernel, moments, neighbours, resampling
from diffjax.metrics.reference import Reference
from diffjax.metrics.resampling import Estimate
from diffjax.numbers import number, with_error

_REPEATS = 20  # repeats of the bootstrap
_SPLITS = 10  # parts of the Inception score
_BLOCKS = 10  # blocks of the jackknife for errors of nearest-neighbour metrics

Values = dict[str, Estimate]

REAL = "closest to real images"  # direction of a metric for which a value above that of real images is not better


class Column(NamedTuple):
    """A column of a table."""

    heading: str
    better: str  # direction: "lower", "higher", REAL or "closest to 1"
    lowest: float | None = None  # least possible value; a lower estimate is not resolved. None: values are kept as is

    @property
    def title(self) -> str:
        """Heading with the direction that is better."""
        return f"{self.heading} ({self.better} is better)"


class Compared(NamedTuple):
    """Inputs of a metric."""

    features: Mapping[str, np.ndarray]  # features of the samples, float32 [N, D] each
    reference: Reference
    distance: Callable[[moments.Moments], float]  # Fréchet distance to the reference's pooled features
    with_errors: bool  # compute standard errors by resampling: up to a minute on two cores for 2048 features
    extrapolate: bool  # extrapolate Fréchet distances to infinitely many samples: takes as long again
    seed: int


class Metric(NamedTuple):
    """A comparison of features."""

    network: str  # name of the feature network
    columns: Mapping[str, Column]
    compute: Callable[[Compared], Values]
    min_images: int  # least number of samples, and of real images
    # what is required of the real images: moments of features ("pooled", "spatial"), "features", or "" for nothing
    requires: str = "features"
    min_extrapolated: int = 0  # least number of samples for the extrapolation


def _frechet(name: str, heading: str, network: str) -> Metric:
    def compute(c: Compared) -> Values:
        pooled = c.features["pooled"]
        values = {name: Estimate(c.distance(moments.from_features(pooled)), _bootstrap_error(pooled, c.distance, c))}
        if c.extrapolate:
            limit = frechet.at_infinity(pooled, c.distance, seed=c.seed)
            values[f"{name}_infinity"] = Estimate(limit.value, limit.standard_error)
        return values

    columns = {name: Column(heading, "lower"), f"{name}_infinity": Column(f"{heading} infinity", "lower", lowest=0.0)}
    return Metric(network, columns, compute, 2, "pooled", min_extrapolated=4)  # 4: two sizes for the line


def _bootstrap_error(features: np.ndarray, distance: Callable[[moments.Moments], float], c: Compared) -> float | None:
    """Returns the standard error of a Fréchet distance; None without `with_errors`."""
    if not c.with_errors:
        return None
    return resampling.bootstrap(
        lambda some: distance(moments.from_features(some)), (features,), repeats=_REPEATS, seed=c.seed
    )


def _spatial_frechet() -> Metric:
    def compute(c: Compared) -> Values:
        spatial, distance = c.features["spatial"], frechet.distance_to(c.reference.moments["spatial"])
        return {"sfid": Estimate(distance(moments.from_features(spatial)), _bootstrap_error(spatial, distance, c))}

    return Metric("inception", {"sfid": Column("sFID", "lower")}, compute, 2, "spatial")


def _kernel(name: str, heading: str, network: str) -> Metric:
    def compute(c: Compared) -> Values:
        return {name: kernel.kernel_distance(c.features["pooled"], c.reference.features, seed=c.seed)}

    return Metric(network, {name: Column(heading, "lower")}, compute, min_images=4)


def _inception_score() -> Metric:
    def compute(c: Compared) -> Values:
        mean, deviation = inception_score.inception_score(c.features["logits"], splits=_SPLITS)
        return {"is": Estimate(mean, deviation / np.sqrt(_SPLITS - 1))}  # `deviation` divides by _SPLITS

    return Metric("inception", {"is": Column("IS", "higher")}, compute, _SPLITS, "")


def _precision_recall(network: str) -> Metric:
    kinds = {"precision": "higher", "recall": "higher", "density": "closest to 1", "coverage": "higher"}
    columns = {f"{name}_{network}": Column(name, better) for name, better in kinds.items()}

    def compute(c: Compared) -> Values:
        real, fake = c.reference.features, c.features["pooled"]
        count = min(len(real), len(fake))  # with equal numbers both nearest-neighbour radii have the same meaning

        def values(some: np.ndarray) -> np.ndarray:
            nearest = {k: neighbours.precision_recall_density_coverage(real[:count], some, k=k) for k in (3, 5)}
            return np.array([getattr(nearest[3 if name in ("precision", "recall") else 5], name) for name in kinds])

        errors = [None] * len(kinds)
        if c.with_errors and count >= 2 * _BLOCKS:
            # A proportion of 0 or 1 may have no spread; its error is then Wilson's for as many trials.
            wilson = resampling.proportion_with_error(np.ones(count, bool)).standard_error
            lowest = [0.0 if name == "density" else wilson or 0.0 for name in kinds]
            jackknife = resampling.jackknife(values, fake[:count], blocks=_BLOCKS, seed=c.seed)
            errors = np.maximum(jackknife, lowest).tolist()
        entries = zip(columns, values(fake[:count]).tolist(), errors, strict=True)
        return {name: Estimate(value, error) for name, value, error in entries}

    return Metric(network, columns, compute, min_images=6)  # 6: five neighbours


def _cmmd() -> Metric:
    def compute(c: Compared) -> Values:
        sets, gaussian = (c.features["pooled"], c.reference.features), kernel.gaussian(10.0)
        error = 1000 * kernel.mmd_error(*sets, gaussian) if c.with_errors else None
        return {"cmmd": Estimate(1000 * kernel.squared_mmd(*sets, gaussian, unbiased=False), error)}

    return Metric("clip", {"cmmd": Column("CMMD", "lower")}, compute, min_images=4)


COMPARISONS = {
    "fid": _frechet("fid", "FID", "inception"),
    "sfid": _spatial_frechet(),
    "kid": _kernel("kid", "KID", "inception"),
    "is": _inception_score(),
    "precision_recall_inception": _precision_recall("inception"),
    "fd_effnet_lite0": _frechet("fd_effnet_lite0", "FD-EffNetLite0", "effnet_lite0"),
    "kd_effnet_lite0": _kernel("kd_effnet_lite0", "KD-EffNetLite0", "effnet_lite0"),
    "precision_recall_effnet_lite0": _precision_recall("effnet_lite0"),
    "fd_dinov2": _frechet("fd_dinov2", "FD-DINOv2", "dinov2"),
    "kd_dinov2": _kernel("kd_dinov2", "KD-DINOv2", "dinov2"),
    "precision_recall_dinov2": _precision_recall("dinov2"),
    "fd_pixels": _frechet("fd_pixels", "FD-pixels", "pixels"),
    "kd_pixels": _kernel("kd_pixels", "KD-pixels", "pixels"),
    "precision_recall_pixels": _precision_recall("pixels"),
    "fd_classifier": _frechet("fd_classifier", "FD-classifier", "classifier"),
    "kd_classifier": _kernel("kd_classifier", "KD-classifier", "classifier"),
    "precision_recall_classifier": _precision_recall("classifier"),
    "cmmd": _cmmd(),
}
CLASS_METRICS = {  # metrics of samples with labels
    "classifier_accuracy": Column("classifier accuracy", REAL),
    "cas": Column("CAS", "higher"),
}
CLIP_METRICS = {  # metrics of samples with captions, by a CLIP
    "clip_score": Column("CLIP score", "higher"),
    "r_precision": Column("R-precision", "higher"),
}
CAPTION_METRICS = {  # metrics of samples with captions, by reading images of `shapes`
    name: Column(f"caption accuracy: {name.removeprefix('caption_')}", "higher") for name in alignment.CAPTION_VALUES
} | {
    "caption_accuracy": Column("caption accuracy", "higher"),
    "caption_relation_share": Column("caption accuracy: objects identified", "higher"),
}
TEXT_METRICS = (*CLIP_METRICS, "caption_accuracy")
NAMES = (*COMPARISONS, *CLASS_METRICS, *TEXT_METRICS)


def columns_of(name: str) -> Mapping[str, Column]:
    """Returns the columns of a metric in NAMES."""
    if name in COMPARISONS:
        return COMPARISONS[name].columns
    return CAPTION_METRICS if name == "caption_accuracy" else {name: (CLASS_METRICS | CLIP_METRICS)[name]}


COLUMNS = {column: about for name in NAMES for column, about in columns_of(name).items()}


def result_entry(column: str, estimate: Estimate, baseline: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the entry of a result file for an estimate.

    Args:
      column: name in COLUMNS.
      estimate: value and standard error.
      baseline: entry of `Measurer.baselines`.

    Returns:
      "value" and "standard_error", and the baseline's entries. For an estimate below the column's lowest value, "value"
      is None and "estimate" is the number.
    """
    entry = estimate._asdict() | dict(baseline or {})
    if not _resolved(column, estimate):
        entry |= {"value": None, "estimate": estimate.value}
    return entry


def estimate_text(column: str, estimate: Estimate, count: int, baseline: Mapping[str, Any] | None = None) -> str:
    """Returns an estimate from `count` images as text: its value, its error, and its baselines."""
    value = with_error(*estimate)
    if estimate.value is None:
        value = "– (not defined on these samples)"
    elif not _resolved(column, estimate):
        value = f"not resolved with {count} samples (estimate {value})"
    elif estimate.value < 0:
        value += "  (an unbiased estimate of a non-negative number)"
    baseline = baseline or {}
    notes = []
    if "real" in baseline:
        notes.append(f"real images {with_error(*baseline['real'].values())}")
    if "chance" in baseline:
        notes.append(f"chance {number(baseline['chance'])}")
    return value + (f"  ({', '.join(notes)})" if notes else "")


def _resolved(column: str, estimate: Estimate) -> bool:
    lowest = COLUMNS[column].lowest
    return lowest is None or estimate.value is None or estimate.value >= lowest
