"""Single files of published weights, whose config is a file of configs/published.

Which names the tensors have is the config's `published.naming`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from diffjax.conversion import compvis, openai
from diffjax.conversion.components import ImportedRun
from diffjax.errors import unknown
from diffjax.published.lazy import LazyTensor
from diffjax.published.tensors import open_tensors

Tensors = Mapping[str, LazyTensor]


def read_file(path: Path, config: ConfigDict) -> ImportedRun:
    """Returns the run of a single file.

    Args:
      config: config of the network in the file; it is changed.

    Raises:
      UserError: the file cannot be read, or the config has no `published.naming` that is known.
    """
    naming = config.get("published", {}).get("naming", "")
    if naming not in NAMINGS:
        raise unknown("published.naming", naming, NAMINGS)
    return NAMINGS[naming](path, ConfigDict(config.to_dict()), open_tensors(path))


NAMINGS: dict[str, Callable[[Path, ConfigDict, Tensors], ImportedRun]] = {
    "compvis": compvis.read,
    "openai": openai.read,
}
