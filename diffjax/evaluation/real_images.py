"""Real images that samples are compared with: a split of the data set, or an .npz file of images or statistics.

The files are those of ADM's evaluations (Dhariwal & Nichol 2021) and of FID's original code and pytorch-fid:

| arrays | content |
|---|---|
| `arr_0` | images, uint8 [N, H, W, C] |
| `mu`, `sigma` | mean [2048] and covariance [2048, 2048] of FID's features, often of more images than `arr_0` has |
| `mu_s`, `sigma_s` | mean [2023] and covariance [2023, 2023] of the features of sFID |
"""

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from diffjax import io
from diffjax.data.archives import array_header, read_array
from diffjax.errors import UserError, excerpt
from diffjax.evaluation.metrics import Metric
from diffjax.metrics import moments, reference
from diffjax.metrics.moments import Moments
from diffjax.runs.datasets import image_data, open_dataset
from diffjax.runs.loading import Run

MAX_IMAGES = 100_000  # real images of a reference, the first ones: `shapes` has no end
_CHUNK = 1000  # real images that are read at once
_FINGERPRINT = 256  # images whose pixels are in the fingerprint
_STATISTICS = {"pooled": ("mu", "sigma", 2048), "spatial": ("mu_s", "sigma_s", 2023)}  # arrays, values per feature
_SIZED = ("classifier", "clip", "pixels")  # networks whose features depend on the size of the images
_PICKLES = (".pkl", ".pickle")


@dataclasses.dataclass(frozen=True)
class RealImages:
    """Real images, of which some statistics may be known.

    Attributes:
      name: of the images, for provenance: {"data", "split"} or {"data"}.
      count: number of images; 0: there are only statistics.
      shape: height, width and channels of the images; None without images.
      read: returns the images from index `start` to `stop`, uint8 [N, H, W, C].
      statistics: known moments of the features of FID's network, by kind: "pooled" (FID), "spatial" (sFID).
      path: the file; None for a split of a data set.
      sample_shape: height, width and channels of samples, for images of a file.
    """

    name: Mapping[str, str]
    count: int
    shape: tuple[int, ...] | None
    read: Callable[[int, int], UInt8[np.ndarray, "N H W C"]]
    statistics: Mapping[str, Moments] = dataclasses.field(default_factory=dict)
    path: str | None = None
    sample_shape: tuple[int, ...] = ()

    @property
    def sizes(self) -> str:
        """Sizes of the images and of the samples, in words."""
        real, sample = ("x".join(map(str, shape[:2])) for shape in (self.shape or (), self.sample_shape))
        return f"{self.path} has images of {real}, and samples are {sample}"

    @property
    def text(self) -> str:
        """The images in words."""
        parts = (["the statistics"] if self.statistics else []) + ([f"{self.count} images"] if self.count else [])
        return f"{' and '.join(parts)} of {':'.join(self.name.values())}"

    def provenance(self) -> dict[str, Any]:
        """Returns what metrics depend on. Reads the first images."""
        fields: dict[str, Any] = {**self.name, "images": self.count}
        images = self.read(0, min(self.count, _FINGERPRINT)) if self.count else None
        if images is not None:
            fields |= {"pixels": f"{'x'.join(map(str, images.shape[1:]))}, 8 bits"}
        if not self.statistics:
            assert images is not None
            return fields | {"fingerprint": reference.fingerprint(images)}
        digest = hashlib.sha256(b"" if images is None else np.ascontiguousarray(images).tobytes())
        for _, known in sorted(self.statistics.items()):
            digest.update(known.mean.tobytes() + known.scatter.tobytes())
        return fields | {"statistics": sorted(self.statistics), "fingerprint": f"sha256:{digest.hexdigest()[:16]}"}

    def known(self, metric: Metric) -> bool:
        """Returns whether a metric requires no images, because its statistics are known."""
        return bool(self.statistics) and metric.network == "inception" and metric.requires in ("", *self.statistics)

    def check(self, name: str, metric: Metric) -> None:
        """Raises UserError if a metric requires more or other images, or statistics that are not known."""
        if self.known(metric):
            return
        if metric.network in _SIZED and self.shape and self.shape[:2] != self.sample_shape[:2]:
            raise UserError(f"--metrics={name}: requires real images of the size of the samples; {self.sizes}")
        if not self.count:
            needed = "images (arr_0)" + (" or mu_s and sigma_s" if metric.requires == "spatial" else "")
            raise UserError(f"--metrics={name}: requires {needed}, which {self.path} does not have; use another file")
        if self.count < metric.min_images:
            where = self.path or self.name["split"]
            raise UserError(
                f"--metrics={name}: requires at least {metric.min_images} real images, and {where} has {self.count}"
            )

    def batches(self) -> Iterator[UInt8[np.ndarray, "N H W C"]]:
        """Yields all images."""
        for start in tqdm(range(0, self.count, _CHUNK), unit="batch", desc="statistics of real images"):
            yield self.read(start, min(start + _CHUNK, self.count))


def is_file(real: str | None) -> bool:
    """Returns whether a reference is the path of a file, as opposed to a split of a data set."""
    return real is not None and Path(real).suffix.lower() in (".npz", *_PICKLES)


def open_real_images(trained: Run, real: str | None) -> RealImages:
    """Opens the real images to compare samples of a run with.

    Args:
      trained: run.
      real: .npz file, or split of the run's data set; None: the split that the run was trained on.

    Raises:
      UserError: the images do not exist, or the file cannot be read or is not of such images.
    """
    if real is not None and is_file(real):
        return _open_file(real, (trained.spec.size, trained.spec.size, trained.spec.channels))
    split: str = real or trained.config.data.split
    source = open_dataset(trained.config, split)
    count = min(len(source), MAX_IMAGES)

    def read(start: int, stop: int) -> UInt8[np.ndarray, "N H W C"]:
        return np.stack([example["image"] for example in source.__getitems__(range(start, stop))])

    return RealImages({"data": image_data(trained.config).name, "split": split}, count, None, read)


def _open_file(path: str, sample_shape: tuple[int, ...]) -> RealImages:
    if Path(path).suffix.lower() in _PICKLES:
        raise UserError(
            f"--reference={path}: pickles are not supported, as reading one can run its code; pass an .npz file with "
            "arr_0, or with mu and sigma"
        )
    try:
        return _read_file(path, sample_shape)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--reference={path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a changed byte in a zip file raises errors of many kinds
        reason = excerpt(str(error)) or type(error).__name__
        raise UserError(f"--reference={path}: is not an .npz file, or is damaged ({reason})") from error


def _read_file(path: str, sample_shape: tuple[int, ...]) -> RealImages:
    with io.open_regular(path) as file, zipfile.ZipFile(file) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        statistics = {
            kind: _read_moments(path, archive, mean, covariance, width)
            for kind, (mean, covariance, width) in _STATISTICS.items()
            if {mean, covariance} & names
        }
        images = _read_images(path, archive, sample_shape[2]) if "arr_0" in names else None
    if not statistics and images is None:
        shown = excerpt(", ".join(sorted(names))) or "nothing"
        raise UserError(f"--reference={path}: requires arr_0, or mu and sigma, and has {shown}; use another file")
    count, shape = (0, None) if images is None else (min(len(images), MAX_IMAGES), images.shape[1:])

    def read(start: int, stop: int) -> UInt8[np.ndarray, "N H W C"]:
        assert images is not None
        return np.array(images[start:stop])

    return RealImages({"data": Path(path).name}, count, shape, read, statistics, path, sample_shape)


def _read_moments(path: str, archive: zipfile.ZipFile, mean: str, covariance: str, width: int) -> Moments:
    arrays = []
    for name, shape in ((mean, (width,)), (covariance, (width, width))):
        if f"{name}.npy" not in archive.namelist():
            raise UserError(f"--reference={path}: has no {name} for its {mean if name == covariance else covariance}")
        stored, dtype = array_header(archive, f"{name}.npy")
        if stored != shape or dtype.kind != "f":
            raise UserError(
                f"--reference={path}: {name} is {dtype}{list(stored)}; must be floating point {list(shape)}, of the "
                "features of FID's network"
            )
        array = np.array(read_array(path, archive, f"{name}.npy"), np.float64)
        if not np.isfinite(array).all():
            raise UserError(f"--reference={path}: {name} has values that are not finite")
        arrays.append(array)
    if not np.allclose(arrays[1], arrays[1].T, atol=1e-4 * np.abs(arrays[1]).max()):
        raise UserError(f"--reference={path}: {covariance} is not symmetric; it must be a covariance")
    return moments.from_covariance(*arrays)


def _read_images(path: str, archive: zipfile.ZipFile, channels: int) -> UInt8[np.ndarray, "N H W C"]:
    shape, dtype = array_header(archive, "arr_0.npy")
    if dtype != np.uint8 or len(shape) != 4 or not all(shape):
        raise UserError(f"--reference={path}: arr_0 is {dtype}{list(shape)}; must be images, uint8 [N, H, W, C]")
    if shape[3] != channels:
        raise UserError(f"--reference={path}: arr_0 has images of {shape[3]} channels, and samples have {channels}")
    return read_array(path, archive, "arr_0.npy")
