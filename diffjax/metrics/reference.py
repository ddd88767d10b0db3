"""Statistics of real images, computed once and stored on disk."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from diffjax import io
from diffjax.metrics import moments
from diffjax.metrics.features import Features
from diffjax.metrics.moments import Moments

NUM_FEATURES = 10_000  # real images whose features are stored, for kernel distances and nearest neighbours
_FORMAT = 2  # increase for changes of the stored arrays or of the features


class Reference(NamedTuple):
    """Statistics of a set of images.

    Attributes:
      moments: by kind of features, without logits.
      features: "pooled" of the first NUM_FEATURES images, float32.
    """

    moments: Mapping[str, Moments]
    features: Float[np.ndarray, "K D"]


def folder() -> Path:
    """Returns the folder of references: $DIFFJAX_CACHE, or diffjax in the user's cache folder."""
    return Path(os.environ.get("DIFFJAX_CACHE") or io.cache_folder()) / "references"


def fingerprint(images: UInt8[np.ndarray, "N H W C"]) -> str:
    """Hashes pixels, so that a lossy copy of a data set has statistics of its own."""
    return f"sha256:{io.short_hash(np.ascontiguousarray(images).tobytes())}"


def load_or_make(
    provenance: Mapping, extract: Callable[[np.ndarray], Features], batches: Iterable[UInt8[np.ndarray, "N H W C"]]
) -> Reference:
    """Returns the statistics of the images in `batches`, from disk if stored with the same `provenance`.

    Prints a warning for a damaged file, which is computed again, and for one that cannot be written.

    Args:
      provenance: everything the statistics depend on, as JSON: data set, split, size, resizing, network, weights.
      extract: maps images to features, on the host.
      batches: of images.
    """
    key = json.dumps({"format": _FORMAT, **provenance}, sort_keys=True)
    path = folder() / f"{io.short_hash(key)}.npz"
    if path.is_file():
        try:
            return _load(path, key)
        except Exception as error:  # a changed byte in a zip file raises errors of many kinds
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            print(f"warning: {path} is damaged ({reason}); computed again", file=sys.stderr)
    all_moments: dict[str, Moments] = {}
    pooled: list[np.ndarray] = []
    for images in batches:
        features = {name: np.asarray(value) for name, value in extract(images).items() if name != "logits"}
        for kind, values in features.items():
            batch = moments.from_features(values)
            all_moments[kind] = moments.merge(all_moments[kind], batch) if kind in all_moments else batch
        if sum(map(len, pooled)) < NUM_FEATURES:
            pooled.append(features["pooled"].astype(np.float32))
    reference = Reference(all_moments, np.concatenate(pooled)[:NUM_FEATURES])
    try:
        _save(path, key, reference)
    except OSError as error:
        print(f"warning: {path} cannot be written ({error.strerror or error})", file=sys.stderr)
    return reference


def _save(path: Path, key: str, reference: Reference) -> None:
    arrays = {
        f"moments/{kind}/{field}": np.asarray(getattr(each, field))
        for kind, each in reference.moments.items()
        for field in Moments._fields
    }
    arrays |= {"key": np.array(key), "features": reference.features}
    arrays["sha256"] = np.array(_checksum(arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def _load(path: Path, key: str) -> Reference:
    """Raises an exception of any kind for a file that `_save` did not write; unpickles nothing."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if str(arrays.pop("sha256")) != _checksum(arrays):
        raise ValueError("its checksum differs")
    if str(arrays["key"]) != key:
        raise ValueError("it is of other data")
    kinds = sorted({name.split("/")[1] for name in arrays if name.startswith("moments/")})
    all_moments = {kind: Moments(*(arrays[f"moments/{kind}/{field}"] for field in Moments._fields)) for kind in kinds}
    return Reference(all_moments, arrays["features"])


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
