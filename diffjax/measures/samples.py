"""What is measured of samples against real images."""

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from diffjax.errors import UserError, unknown
from diffjax.evals import features, frechet, reference
from diffjax.evals.recognition import Recogniser
from diffjax.evals.resampling import Estimate
from diffjax.judge import judge_of
from diffjax.measures import alignment
from diffjax.measures.metrics import (
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
from diffjax.run import Run, open_source
from diffjax.spread import Spread

_AT_ONCE = 1000  # real images that are worked on together
_MOST = 100_000  # real images of a reference, the first of the split: shapes have no end
_RECOGNISED_BY = 5000  # real images that the recogniser is fitted to, the first of the split


class Measurer:
    """Compares samples of a run with real images of its data set.

    Attributes:
      provenance: all that the figures depend on beside the samples.
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
        thorough: bool = False,
        seed: int = 0,
    ):
        """Computes the reference's statistics, or reads them where they were computed before.

        Args:
          names: of NAMES.
          split: of the data set; None: what the run was trained on.
          classes: that samples are drawn of, 0: none; None: those of the run, which nothing else guides.
          inception: file of its weights.
          clip: run or folder of a CLIP; None: the one that was trained with the run.
          thorough: error bars and FID at infinity.

        Raises:
          UserError: an unknown name, missing weights or data.
        """
        for name in names:
            if name not in NAMES:
                raise unknown("metric", name, NAMES)
        self._metrics = {name: COMPARISONS[name] for name in names if name in COMPARISONS}
        classes = trained.system.classes if classes is None else classes
        self._by_class = [name for name in names if name in BY_CLASS and classes]
        self._by_caption = [name for name in names if name in BY_CAPTION and trained.system.text]
        if "captions" in self._by_caption:
            alignment.check_shapes("captions", trained)
        self._thorough, self._seed, self.warnings = thorough, seed, []
        networks = {metric.network for metric in self._metrics.values()}
        self._judge = None
        if "clip" in networks or set(self._by_caption) & set(BY_CLIP):
            self._judge = judge_of(trained, clip, batch_size)
        loaded = {
            name: self._judge.network() if name == "clip" else features.load(name, weights=inception)
            for name in sorted(networks)
        }
        source = open_source(trained.config, split or trained.config.data.split)
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
        if self._judge and "clip" not in networks:
            self.provenance["judge"] = self._judge.provenance
        self.provenance["networks"] = {name: dict(network.provenance) for name, network in loaded.items()}
        if self._by_class:
            train, test = (_labelled(open_source(trained.config, s)) for s in (self.provenance["split"], "test"))
            self._test, self._recogniser = test, Recogniser(train, test)
            self.provenance["recogniser_held_out_accuracy"] = self._recogniser.held_out_accuracy

    @property
    def columns(self) -> dict[str, Column]:
        """Of the figures that a call may give."""
        return {
            column: about
            for n in (*self._metrics, *self._by_class, *self._by_caption)
            for column, about in columns_of(n).items()
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
            compared = Compared(found, real, self._distances[metric.network], self._thorough, self._seed)
            try:
                values |= metric.measure(compared)
            except ValueError as error:  # of too few
                raise UserError(f"{name} of {len(images)} samples: {error}: raise --num") from error
        if "recognised" in self._by_class:
            share = self._recogniser.accuracy(images, labels)
            values["recognised"] = Estimate(share, float(np.sqrt(share * (1 - share) / len(images))))
        if "cas" in self._by_class:
            share = Recogniser((images, labels), self._test).held_out_accuracy
            values["cas"] = Estimate(share, float(np.sqrt(share * (1 - share) / len(self._test[0]))))
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
