"""Single files of published weights, whose config is a file of configs/published.

Which names the tensors have is the config's `published.naming`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from diffjax.conversion import clip, compvis, file_tables, openai
from diffjax.conversion.components import ImportedRun, below
from diffjax.errors import UserError, unknown
from diffjax.models.parameter_paths import flatten
from diffjax.published import table
from diffjax.published.lazy import LazyTensor
from diffjax.published.tables import edm
from diffjax.runs.loading import Run

Tensors = Mapping[str, LazyTensor]


def read_file(path: Path, config: ConfigDict) -> ImportedRun:
    """Returns the run of a single file.

    Args:
      config: config of the network in the file; it is changed.

    Raises:
      UserError: the file cannot be read, or the config has no `published.naming` that is known.
    """
    naming, is_clip = config.get("published", {}).get("naming", ""), config.system == "clip"
    if naming not in (clip.NAMINGS if is_clip else NAMINGS):
        raise unknown("published.naming", naming, clip.NAMINGS if is_clip else NAMINGS)
    tensors = file_tables.open_source(path, naming)
    tensors = below(tensors, "ema.") or below(tensors, "state_dict.") or tensors  # files of training have more
    if is_clip:
        return clip.read_single_file(path, config, tensors)
    return NAMINGS[naming](path, ConfigDict(config.to_dict()), tensors)


def write_file(run: Run, path: Path) -> None:
    """Writes the variables of a run to a safetensors file, under the names of its family.

    Args:
      run: a run whose config has `published.naming`, such as an imported one.
      path: file to write.

    Raises:
      UserError: the config names no family, or one that cannot be written.
    """
    naming = run.config.get("published", {}).get("naming", "")
    writable = sorted(file_tables.TABLES.keys() - file_tables.PARTS)
    if naming not in writable:
        raise UserError(
            f"published.naming={naming or repr('')} of {run.workdir.config}: --format=safetensors requires one of "
            f"{', '.join(writable)}, as in configs/published; use --format=diffjax"
        )
    variables = {name: tree for name, tree in run.variables.items() if name != "frozen"}
    arrays = {key: np.asarray(leaf) for key, leaf in flatten(variables).items()}
    save_file(table.write(file_tables.TABLES[naming](run.config), arrays), path, metadata={"format": "pt"})


def read_network(path: Path, config: ConfigDict, tensors: Tensors) -> ImportedRun:
    """Returns the run of a network with a table of its own: DiT, DALL-E's discrete VAE, TAESD, EDM's DhariwalUNet."""
    naming = config.published.naming
    if naming == "edm":
        edm.check_dhariwal_unet(tensors, network=str(path))
    return ImportedRun(path, config, file_tables.TABLES[naming](config), tensors)


NAMINGS: dict[str, Callable[[Path, ConfigDict, Tensors], ImportedRun]] = {
    **dict.fromkeys(file_tables.TABLES, read_network),
    "compvis": compvis.read,
    "openai": openai.read,
}
