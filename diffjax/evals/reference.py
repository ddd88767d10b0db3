"""Statistics of real images, computed once and kept on disk."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from diffjax import io
from diffjax.evals import moments
from diffjax.evals.features import Features
from diffjax.evals.moments import Moments

KEPT = 10_000  # real images whose features are kept as they are, for kernel distances and nearest neighbours
_FORMAT = 1  # raise when what is stored, or how features are computed, changes


class Reference(NamedTuple):
    """What is kept of a set of images."""

    moments: Mapping[str, Moments]  # of each kind of features but logits
    features: Float[np.ndarray, "K D"]  # "pooled" of the first KEPT, float32


def folder() -> Path:
    """Where references are kept: $DIFFJAX_CACHE, or diffjax in the user's cache folder."""
    return Path(os.environ.get("DIFFJAX_CACHE") or io.cache_folder()) / "references"


def fingerprint(images: UInt8[np.ndarray, "N H W C"]) -> str:
    """Of pixels, so that a lossy copy of a data set is not taken for the original."""
    return f"sha256:{io.short_hash(np.ascontiguousarray(images).tobytes())}"


def load_or_make(
    provenance: Mapping, extract: Callable[[np.ndarray], Features], batches: Iterable[UInt8[np.ndarray, "N H W C"]]
) -> Reference:
    """The statistics of the images in `batches`, from disk where some of the same `provenance` are there.

    Args:
      provenance: all that the statistics depend on, as JSON: data set, split, size, resizing, network, weights.
      extract: features, on the host.
    """
    key = json.dumps({"format": _FORMAT, **provenance}, sort_keys=True)
    path = folder() / f"{io.short_hash(key)}.npz"
    if path.exists():
        with np.load(path) as stored:
            if str(stored["key"]) == key:
                kinds = sorted({name.split("/")[1] for name in stored.files if name.startswith("moments/")})
                found = {kind: Moments(*(stored[f"moments/{kind}/{f}"] for f in Moments._fields)) for kind in kinds}
                return Reference(found, stored["features"])
    found, kept = {}, []
    for images in batches:
        features = {name: value for name, value in extract(images).items() if name != "logits"}
        for kind, values in features.items():
            more = moments.of(values)
            found[kind] = moments.merge(found[kind], more) if kind in found else more
        if sum(map(len, kept)) < KEPT:
            kept.append(features["pooled"].astype(np.float32))
    made = Reference(found, np.concatenate(kept)[:KEPT])
    arrays = {f"moments/{k}/{f}": getattr(m, f) for k, m in found.items() for f in Moments._fields}
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, key=key, features=made.features, **arrays)
    return made
