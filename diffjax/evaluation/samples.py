"""Measures samples against real images, their class and their caption."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from diffjax.errors import UserError, unknown
from diffjax.evaluation import alignment, classifier
from diffjax.evaluation.metrics import (
    CLASS_METRICS,
    CLIP_METRICS,
    COMPARISONS,
    NAMES,
    TEXT_METRICS,
    Column,
    Compared,
    Values,
    columns_of,
)
from diffjax.evaluation.real_images import is_file, open_real_images
from diffjax.inference.batching import DataParallelMap
from diffjax.inference.reranking import check_reranker, load_reranker
from diffjax.metrics import features, frechet, reference
from diffjax.metrics.features import WeightPaths
from diffjax.metrics.pixel_classifier import PixelClassifier
from diffjax.runs.datasets import open_dataset, open_held_out_images
from diffjax.runs.loading import Run

_CLASSIFIER_IMAGES = 5000  # real images that the classifier is fitted to, the first ones of the split


def check(
    names: Sequence[str],
    trained: Run,
    count: int,
    *,
    real: str | None = None,
    classes: int | None = None,
    weights: WeightPaths | None = None,
    clip: str | Path | None = None,
    extrapolate: bool = False,
) -> None:
    """Raises UserError for a metric of `count` samples that a `Measurer` cannot compute; loads no network.

    Args:
      names: names in NAMES.
      count: number of samples.
      real, classes, weights, clip, extrapolate: as of `Measurer`.

    Raises:
      UserError: an unknown name, a metric that does not suit the run, too few samples, or missing data or weights.
    """
    check_names(names, weights or {})
    classes = trained.system.classes if classes is None else classes
    for name in names:
        if name in CLASS_METRICS and not classes:
            raise UserError(f"--metrics={name}: requires class-conditional samples; remove it for this run")
        if name in TEXT_METRICS and not trained.system.text:
            raise UserError(f"--metrics={name}: requires text-conditional samples; remove it for this run")
        if name == "caption_accuracy":
            alignment.check_shapes(name, trained)
        if name in CLASS_METRICS and min(classes, count) < 2:
            raise UserError(f"--metrics={name}: requires samples of at least 2 classes; remove it, or raise --num")
    compared = {name: COMPARISONS[name] for name in names if name in COMPARISONS}
    for name, metric in compared.items():
        needed = max(metric.min_images, metric.min_extrapolated if extrapolate else 0)
        if count < needed:
            raise UserError(f"--metrics={name}: requires at least {needed} images, not {count}; raise --num")
    if _needs_clip(names):
        check_reranker(trained, clip)
    if "classifier" in _networks(names):
        classifier.check_features((weights or {}).get("classifier") or "", trained.spec)
    if set(names) & set(CLASS_METRICS):
        open_held_out_images(trained.config, _split(trained, real))  # raises if there are no held-out examples
    if compared or not is_file(real):
        images = open_real_images(trained, real)
        for name, metric in compared.items():
            images.check(name, metric)


def check_names(names: Sequence[str], weights: WeightPaths) -> None:
    """Raises UserError for a name that is not in NAMES, or if the weights of its network are missing; reads no file."""
    for name in names:
        if name not in NAMES:
            raise unknown("metric", name, NAMES)
    for network in _networks(names):
        features.check(network, weights)


class Measurer:
    """Compares samples of a run with real images of its data set.

    Attributes:
      real: the real images.
      provenance: everything that the values depend on besides the samples.
      warnings: reasons to distrust a value, each once.
    """

    def __init__(
        self,
        names: Sequence[str],
        trained: Run,
        *,
        real: str | None = None,
        classes: int | None = None,
        weights: WeightPaths | None = None,
        clip: str | Path | None = None,
        batch_size: int = 100,
        with_errors: bool = False,
        extrapolate: bool = False,
        seed: int = 0,
    ):
        """Computes the statistics of the real images, or reads them from the cache.

        Args:
          names: names in NAMES; metrics of classes and captions are ignored for samples without them.
          trained: run whose data set has the real images.
          real: split of the data set, or .npz file for metrics of features; None: the split of the training.
          classes: number of classes of the samples, 0: unconditional; None: that of the run.
          weights: paths of the weights of feature networks.
          clip: run or folder of a CLIP; None: the one that was trained with the run.
          batch_size: images per call of a feature network.
          with_errors: compute standard errors that need resampling.
          extrapolate: extrapolate Fréchet distances to infinitely many samples too.
          seed: seed of resampling, and of R-precision's candidates.

        Raises:
          UserError: an unknown name, or missing weights or data.
        """
        weights = weights or {}
        check_names(names, weights)
        self._metrics = {name: COMPARISONS[name] for name in names if name in COMPARISONS}
        self._trained, self._classes = trained, trained.system.classes if classes is None else classes
        self._class_metrics = [name for name in names if name in CLASS_METRICS and self._classes]
        self._text_metrics = [name for name in names if name in TEXT_METRICS and trained.system.text]
        if "caption_accuracy" in self._text_metrics:
            alignment.check_shapes("caption_accuracy", trained)
        self._with_errors, self._extrapolate, self._seed = with_errors, extrapolate, seed
        self.warnings: list[str] = []
        self._judge = (
            load_reranker(trained, clip, batch_size) if _needs_clip([*self._metrics, *self._text_metrics]) else None
        )
        self.real = open_real_images(trained, real)
        if self.real.shape and self.real.shape != self.real.sample_shape:
            self.warnings.append(f"{self.real.sizes}: distances include the difference in size")
        self.provenance: dict[str, Any] = self.real.provenance()
        networks = {name: self._load_network(name, weights) for name in _networks(self._metrics)}
        self._read_references(networks, batch_size)
        if self._judge and "clip" not in networks:
            self.provenance["judge"] = self._judge.provenance
        self.provenance["networks"] = {name: dict(network.provenance) for name, network in networks.items()}
        if self._class_metrics:
            split = _split(trained, real)
            self._held_out = _labelled(open_held_out_images(trained.config, split))
            self._classifier = PixelClassifier(_labelled(open_dataset(trained.config, split)), self._held_out)
            self.provenance["classifier_held_out_accuracy"] = self._classifier.held_out.value

    def _load_network(self, name: str, weights: WeightPaths) -> features.Network:
        if name == "clip" and self._judge:
            return self._judge.network()
        if name == "classifier":
            return classifier.feature_network(weights[name] or "", self._trained.spec)
        return features.load(name, weights)

    def _read_references(self, networks: Mapping[str, features.Network], batch_size: int) -> None:
        """Compiles the feature networks, and reads or computes the features of the real images."""
        real = self.real
        self._extract, self._references, self._distances = {}, {}, {}
        for name, network in networks.items():
            extract = functools.partial(
                DataParallelMap(batch_size).compile(network.extract, "the feature network"), network.params
            )
            key = self.provenance | {"network": name, **network.provenance}
            self._extract[name] = extract
            statistics = real.statistics if name == "inception" else {}
            if all(real.known(metric) for metric in self._metrics.values() if metric.network == name):
                self._references[name] = reference.Reference(statistics, np.zeros((0, 0), np.float32))
            else:
                computed = reference.load_or_make(key, extract, real.batches())
                self._references[name] = computed._replace(moments={**computed.moments, **statistics})
            self._distances[name] = frechet.distance_to(self._references[name].moments["pooled"])

    @property
    def columns(self) -> dict[str, Column]:
        """Columns of the values that a call may return."""
        return {
            column: about
            for n in (*self._metrics, *self._class_metrics, *self._text_metrics)
            for column, about in columns_of(n).items()
            if self._extrapolate or not column.endswith("_infinity")
        }

    def __call__(
        self,
        images: UInt8[np.ndarray, "N H W C"],
        labels: Int[np.ndarray, " N"],
        captions: Sequence[str] | None = None,
    ) -> Values:
        """Returns the values of samples, with their labels and captions."""
        extracted = {name: extract(images) for name, extract in self._extract.items()}
        values: Values = {}
        for name, metric in self._metrics.items():
            sampled, real = extracted[metric.network], self._references[metric.network]
            self._warn_if_singular(name, sampled["pooled"])
            distance = self._distances[metric.network]
            compared = Compared(sampled, real, distance, self._with_errors, self._extrapolate, self._seed)
            try:
                values |= metric.compute(compared)
            except ValueError as error:  # too few samples
                raise UserError(f"--metrics={name}: {error} ({len(images)} samples); raise --num") from error
        if "classifier_accuracy" in self._class_metrics:
            values["classifier_accuracy"] = self._classifier.accuracy(images, labels)
        if "cas" in self._class_metrics:
            values["cas"] = PixelClassifier((images, labels), self._held_out).held_out
        return values | self._text_values(images, captions)

    def baselines(self, split: str = "test", count: int = 500) -> dict[str, dict[str, Any]]:
        """Returns the baselines of columns that have any.

        Args:
          split: split of the data set that the captions of the samples are from.
          count: number of real images that are measured against their captions, the first ones of `split`.

        Returns:
          Mappings with "real", the value of real images ("value" and "standard_error"), and "chance", the value of
          samples that ignore their class or caption: for captions, that of real images with each other's captions. The
          real value of `cas` is that of a classifier of real images.
        """
        baselines: dict[str, dict[str, Any]] = {}
        for name in self._class_metrics:
            baselines[name] = {"real": self._classifier.held_out._asdict(), "chance": 1 / self._classes}
        if self._text_metrics:
            source = open_dataset(self._trained.config, split)
            examples = source.__getitems__(range(min(len(source), count)))
            captions = [example["caption"] for example in examples]
            images = np.stack([example["image"] for example in examples])
            others = self._text_values(images, captions[1:] + captions[:1])
            for name, estimate in self._text_values(images, captions).items():
                baselines[name] = {"real": estimate._asdict(), "chance": others[name].value}
            if "r_precision" in baselines:
                baselines["r_precision"]["chance"] = 1 / min(len(set(captions)), alignment.CANDIDATES)
            if "caption_relation" in baselines:
                baselines["caption_relation"]["chance"] = alignment.RELATION_CHANCE
        return baselines

    def _text_values(self, images: UInt8[np.ndarray, "N H W C"], captions: Sequence[str] | None) -> Values:
        values: Values = {}
        if captions is None:
            return values
        if self._judge and (wanted := set(self._text_metrics) & set(CLIP_METRICS)):
            by_clip = alignment.clip_metrics(self._judge, images, captions, seed=self._seed)
            values |= {name: by_clip[name] for name in CLIP_METRICS if name in wanted}
        if "caption_accuracy" in self._text_metrics:
            values |= alignment.caption_accuracy(images, captions)
        return values

    def _warn_if_singular(self, name: str, pooled: np.ndarray) -> None:
        """Adds a warning if there are too few samples for a Fréchet distance."""
        count, dimensions = pooled.shape
        text = (
            f"{name}: {count} samples of {dimensions} features. Their covariance is singular, and the distance has a "
            "large upward bias: compare it at this number of samples only"
        )
        if count <= dimensions and name.startswith(("fid", "fd_")) and text not in self.warnings:
            self.warnings.append(text)


def _networks(names: Iterable[str]) -> list[str]:
    """Returns the names of the feature networks that metrics need."""
    return sorted({COMPARISONS[name].network for name in names if name in COMPARISONS})


def _needs_clip(names: Iterable[str]) -> bool:
    return "clip" in _networks(names) or not set(CLIP_METRICS).isdisjoint(names)


def _split(trained: Run, real: str | None) -> str:
    """Returns the split of the data set whose classes samples are compared with."""
    return trained.config.data.split if real is None or is_file(real) else real


def _labelled(source) -> tuple[np.ndarray, np.ndarray]:
    examples = source.__getitems__(range(min(len(source), _CLASSIFIER_IMAGES)))
    return np.stack([example["image"] for example in examples]), np.array([example["label"] for example in examples])
