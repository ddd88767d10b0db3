"""What is measured of samples against real images."""

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from diffjax.errors import UserError, unknown
from diffjax.evaluation import alignment
from diffjax.evaluation.metrics import (
    BY_CAPTION,
    BY_CLASS,
    BY_CLIP,
    COMPARISONS,
    NAMES,
    Column,
    Compared,
    Values,
    columns_of,
)
from diffjax.inference.batching import Spread
from diffjax.inference.reranking import check_judge, judge_of
from diffjax.metrics import features, frechet, reference
from diffjax.metrics.recognition import Recogniser
from diffjax.runs.loading import Run, open_source

_AT_ONCE = 1000  # real images that are worked on together
_MOST = 100_000  # real images of a reference, the first of the split: shapes have no end
_RECOGNISED_BY = 5000  # real images that the recogniser is fitted to, the first of the split


def check(
    names: Sequence[str],
    trained: Run,
    count: int,
    *,
    split: str | None = None,
    classes: int | None = None,
    inception: str | None = None,
    clip: str | Path | None = None,
    thorough: bool = False,
) -> None:
    """Raises UserError for a metric of `count` samples that a `Measurer` cannot compute; loads no network.

    Args:
      names: of NAMES.
      count: samples to measure.
      split, classes, inception, clip, thorough: as of `Measurer`.

    Raises:
      UserError: an unknown name, a metric that does not suit the run, too few samples, or missing data or weights.
    """
    check_names(names, inception)
    classes = trained.system.classes if classes is None else classes
    for name in names:
        if name in BY_CLASS and not classes:
            raise UserError(f"--metrics={name}: requires class-conditional samples; remove it for this run")
        if name in BY_CAPTION and not trained.system.text:
            raise UserError(f"--metrics={name}: requires text-conditional samples; remove it for this run")
        if name == "captions":
            alignment.check_shapes(name, trained)
        if name in BY_CLASS and min(classes, count) < 2:
            raise UserError(f"--metrics={name}: requires samples of at least 2 classes; remove it, or raise --num")
    compared = {name: COMPARISONS[name] for name in names if name in COMPARISONS}
    for name, metric in compared.items():
        needed = max(metric.least, metric.least_for_limit if thorough else 0)
        if count < needed:
            raise UserError(f"--metrics={name}: requires at least {needed} images, not {count}; raise --num")
    if _needs_clip(names):
        check_judge(trained, clip)
    split = split or trained.config.data.split
    real = len(open_source(trained.config, split))
    for name, metric in compared.items():
        if real < metric.least:
            raise UserError(f"--metrics={name}: requires at least {metric.least} real images, and {split} has {real}")


def check_names(names: Sequence[str], inception: str | None = None) -> None:
    """Raises UserError for a name that is not of NAMES, or whose weights are missing; reads no file."""
    for name in names:
        if name not in NAMES:
            raise unknown("metric", name, NAMES)
    for network in _networks(names):
        features.check(network, weights=inception)


class Measurer:
    """Compares samples of a run with real images of its data set.

    Attributes:
      provenance: all that the figures depend on besides the samples.
      warnings: what a reader of the figures should know.
    """

    def __init__(
        self,
        names: Sequence[str],
        trained: Run,
        *,
        split: str | None = None,
        classes: int | None = None,
        inception: str | None = None,
        clip: str | Path | None = None,
        batch_size: int = 100,
        errors: bool = False,
        thorough: bool = False,
        seed: int = 0,
    ):
        """Computes the reference's statistics, or reads them where they were computed before.

        Args:
          names: of NAMES; those of classes or captions are left out where the samples have none.
          split: of the data set; None: what the run was trained on.
          classes: that samples are drawn of, 0: none; None: those of the run, which nothing else guides.
          inception: file of its weights.
          clip: run or folder of a CLIP; None: the one that was trained with the run.
          errors: standard errors of metrics that need resampling for them.
          thorough: `errors`, and Frechet distances extrapolated to infinitely many samples.

        Raises:
          UserError: an unknown name, missing weights or data.
        """
        check_names(names, inception)
        self._metrics = {name: COMPARISONS[name] for name in names if name in COMPARISONS}
        self._trained, self._classes = trained, trained.system.classes if classes is None else classes
        self._by_class = [name for name in names if name in BY_CLASS and self._classes]
        self._by_caption = [name for name in names if name in BY_CAPTION and trained.system.text]
        if "captions" in self._by_caption:
            alignment.check_shapes("captions", trained)
        self._errors, self._limit, self._seed, self.warnings = errors or thorough, thorough, seed, []
        source = open_source(trained.config, split or trained.config.data.split)
        self._judge = judge_of(trained, clip, batch_size) if _needs_clip([*self._metrics, *self._by_caption]) else None
        loaded = {
            name: self._judge.network() if name == "clip" else features.load(name, weights=inception)
            for name in _networks(self._metrics)
        }
        images = _images(source, 256)
        self.provenance: dict[str, Any] = {
            "data": trained.config.data.name,
            "split": split or trained.config.data.split,
            "images": min(len(source), _MOST),
            "pixels": f"{'x'.join(map(str, images.shape[1:]))}, 8 bits",
            "fingerprint": reference.fingerprint(images),
        }
        self._extract, self._references, self._distances = {}, {}, {}
        for name, network in loaded.items():
            extract = functools.partial(Spread(batch_size).compile(network.extract), network.params)
            key = self.provenance | {"network": name, **network.provenance}
            self._extract[name] = extract
            self._references[name] = reference.load_or_make(key, extract, _batches(source))
            self._distances[name] = frechet.distance_to(self._references[name].moments["pooled"])
        if self._judge and "clip" not in loaded:
            self.provenance["judge"] = self._judge.provenance
        self.provenance["networks"] = {name: dict(network.provenance) for name, network in loaded.items()}
        if self._by_class:
            held_out = "train" if self.provenance["split"].startswith("test") else "test"
            real, self._held_out = (
                _labelled(open_source(trained.config, s)) for s in (self.provenance["split"], held_out)
            )
            self._recogniser = Recogniser(real, self._held_out)
            self.provenance["recogniser_held_out_accuracy"] = self._recogniser.held_out.value

    @property
    def columns(self) -> dict[str, Column]:
        """Of the figures that a call may give."""
        return {
            column: about
            for n in (*self._metrics, *self._by_class, *self._by_caption)
            for column, about in columns_of(n).items()
            if self._limit or not column.endswith("_infinity")
        }

    def __call__(
        self,
        images: UInt8[np.ndarray, "N H W C"],
        labels: Int[np.ndarray, "N"],
        captions: Sequence[str] | None = None,
    ) -> Values:
        """The figures of samples, and of their labels and captions where they have any."""
        extracted = {name: extract(images) for name, extract in self._extract.items()}
        values: Values = {}
        for name, metric in self._metrics.items():
            found, real = extracted[metric.network], self._references[metric.network]
            self._warn_of_few(name, found["pooled"])
            distance = self._distances[metric.network]
            compared = Compared(found, real, distance, self._errors, self._limit, self._seed)
            try:
                values |= metric.measure(compared)
            except ValueError as error:  # of too few
                raise UserError(f"{name} of {len(images)} samples: {error}: raise --num") from error
        if "recognised" in self._by_class:
            values["recognised"] = self._recogniser.accuracy(images, labels)
        if "cas" in self._by_class:
            values["cas"] = Recogniser((images, labels), self._held_out).held_out
        return values | self._of_captions(images, captions)

    def baselines(self, split: str = "test", count: int = 500) -> dict[str, dict[str, Any]]:
        """Returns what figures should be compared with, by column.

        Args:
          split: of the data set, whose captions the samples have.
          count: images of `split` that are measured against their captions, the first ones.

        Returns:
          For some columns a dict with "real", the figure of real images ("value" and "standard_error"), and "chance",
          the figure of samples that ignore their class or caption. Of `cas` it is a classifier of real images.
        """
        found: dict[str, dict[str, Any]] = {}
        for name in self._by_class:
            found[name] = {"real": self._recogniser.held_out._asdict(), "chance": 1 / self._classes}
        if self._by_caption:
            source = open_source(self._trained.config, split)
            examples = source.__getitems__(range(min(len(source), count)))
            captions = [example["caption"] for example in examples]
            real = self._of_captions(np.stack([example["image"] for example in examples]), captions)
            found |= {name: {"real": estimate._asdict()} for name, estimate in real.items()}
            if "r_precision" in found:
                found["r_precision"]["chance"] = 1 / min(len(set(captions)), alignment.CANDIDATES)
            if "caption_relation" in found:
                found["caption_relation"]["chance"] = alignment.RELATION_CHANCE
        return found

    def _of_captions(self, images: UInt8[np.ndarray, "N H W C"], captions: Sequence[str] | None) -> Values:
        values: Values = {}
        if wanted := set(self._by_caption) & set(BY_CLIP):
            found = alignment.by_clip(self._judge, images, captions, seed=self._seed)
            values |= {name: found[name] for name in BY_CLIP if name in wanted}
        if "captions" in self._by_caption:
            values |= alignment.by_reading(images, captions)
        return values

    def _warn_of_few(self, name: str, pooled: np.ndarray) -> None:
        count, dimensions = pooled.shape
        text = (
            f"{name}: {count} samples of {dimensions} features. Their covariance is singular, and the distance is "
            "biased upward by much: compare it at this number of samples only"
        )
        if count <= dimensions and name.startswith(("fid", "fd_")) and text not in self.warnings:
            self.warnings.append(text)
            print(f"warning: {text}", file=sys.stderr)


def _networks(names: Iterable[str]) -> list[str]:
    """The feature networks that metrics need."""
    return sorted({COMPARISONS[name].network for name in names if name in COMPARISONS})


def _needs_clip(names: Iterable[str]) -> bool:
    return "clip" in _networks(names) or not set(BY_CLIP).isdisjoint(names)


def _images(source, count: int) -> UInt8[np.ndarray, "N H W C"]:
    """The first of a source."""
    return np.stack([example["image"] for example in source.__getitems__(range(min(len(source), count)))])


def _labelled(source) -> tuple[np.ndarray, np.ndarray]:
    examples = source.__getitems__(range(min(len(source), _RECOGNISED_BY)))
    return np.stack([example["image"] for example in examples]), np.array([example["label"] for example in examples])


def _batches(source) -> Iterator[UInt8[np.ndarray, "N H W C"]]:
    count = min(len(source), _MOST)
    for start in tqdm(range(0, count, _AT_ONCE), unit="batch", desc="statistics of real images"):
        examples = source.__getitems__(range(start, min(start + _AT_ONCE, count)))
        yield np.stack([example["image"] for example in examples])
