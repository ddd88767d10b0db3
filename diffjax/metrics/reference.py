"""Statistics of real images, computed once and kept on disk."""

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

KEPT = 10_000  # real images whose features are kept as they are, for kernel distances and nearest neighbours
_FORMAT = 2  # raise when what is stored, or how features are computed, changes


class Reference(NamedTuple):
    """What is kept of a set of images."""

    moments: Mapping[str, Moments]  # of each kind of features but logits
    features: Float[np.ndarray, "K D"]  # "pooled" of the first KEPT, float32


def folder() -> Path:
    """Returns where references are kept: $DIFFJAX_CACHE, or diffjax in the user's cache folder."""
    return Path(os.environ.get("DIFFJAX_CACHE") or io.cache_folder()) / "references"


def fingerprint(images: UInt8[np.ndarray, "N H W C"]) -> str:
    """Of pixels, so that a lossy copy of a data set is not taken for the original."""
    return f"sha256:{io.short_hash(np.ascontiguousarray(images).tobytes())}"


def load_or_make(
    provenance: Mapping, extract: Callable[[np.ndarray], Features], batches: Iterable[UInt8[np.ndarray, "N H W C"]]
) -> Reference:
    """Returns the statistics of the images in `batches`, from disk where some of the same `provenance` are there.

    A file that is damaged or foreign is named on standard error, and computed again; so is one that cannot be written.

    Args:
      provenance: all that the statistics depend on, as JSON: data set, split, size, resizing, network, weights.
      extract: features, on the host.
    """
    key = json.dumps({"format": _FORMAT, **provenance}, sort_keys=True)
    path = folder() / f"{io.short_hash(key)}.npz"
    if path.is_file():
        try:
            return _load(path, key)
        except Exception as error:  # a changed byte in a zip file raises errors of many kinds
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            print(f"warning: {path} is damaged ({reason}); computed again", file=sys.stderr)
    found, kept = {}, []
    for images in batches:
        features = {name: value for name, value in extract(images).items() if name != "logits"}
        for kind, values in features.items():
            more = moments.of(values)
            found[kind] = moments.merge(found[kind], more) if kind in found else more
        if sum(map(len, kept)) < KEPT:
            kept.append(features["pooled"].astype(np.float32))
    made = Reference(found, np.concatenate(kept)[:KEPT])
    try:
        _save(path, key, made)
    except OSError as error:
        print(f"warning: {path} cannot be written ({error.strerror or error})", file=sys.stderr)
    return made


def _save(path: Path, key: str, made: Reference) -> None:
    arrays = {f"moments/{k}/{f}": np.asarray(getattr(m, f)) for k, m in made.moments.items() for f in Moments._fields}
    arrays |= {"key": np.array(key), "features": made.features}
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, sha256=np.array(_checksum(arrays)), **arrays)


def _load(path: Path, key: str) -> Reference:
    """Raises an exception of any kind where the file is not what `_save` wrote; unpickles nothing."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if str(arrays.pop("sha256")) != _checksum(arrays):
        raise ValueError("its checksum differs")
    if str(arrays["key"]) != key:
        raise ValueError("it is of other data")
    kinds = sorted({name.split("/")[1] for name in arrays if name.startswith("moments/")})
    found = {kind: Moments(*(arrays[f"moments/{kind}/{field}"] for field in Moments._fields)) for kind in kinds}
    return Reference(found, arrays["features"])


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
