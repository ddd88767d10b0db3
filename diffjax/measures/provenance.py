"""What a figure depends on, kept beside it."""

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from diffjax import io
from diffjax.config import to_json
from diffjax.run import Run

_PACKAGES = ("diffjax", "jax", "flax", "numpy")
_MAY_DIFFER = ("workdir", "system", "classifier", "config", "checkpoint", "sampler", "seed")  # what a table compares


def of_run(trained: Run) -> dict[str, Any]:
    """Of all figures of a run."""
    return {
        "workdir": str(trained.workdir.path),
        "system": trained.config.system,
        "config": io.short_hash(to_json(trained.config)),
        "config_changes": trained.config_changes,
        "checkpoint": trained.step,
        "ema_decay": trained.config.get("train", {}).get("ema_decay"),  # none of a chain
        "data": trained.config.data.name,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def differences(provenances: Iterable[Mapping[str, Any]]) -> list[str]:
    """In what figures differ that makes them not comparable: names of fields, by their dotted path."""
    flat = [dict(_leaves(provenance)) for provenance in provenances]
    names = sorted({name for one in flat for name in one if not name.startswith(_MAY_DIFFER)})
    return [name for name in names if len({json.dumps(one.get(name)) for one in flat}) > 1]


def _leaves(tree: Mapping[str, Any], prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
