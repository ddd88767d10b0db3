"""Single files of published weights, whose config is a file of configs/published.

Which names the tensors have is the config's `published.naming`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffjax.conversion import clip, compvis, file_tables, openai
from diffjax.conversion.components import ImportedRun, below
from diffjax.errors import UserError, unknown
from diffjax.models.parameter_paths import flatten
from diffjax.published import safetensors_file, table
from diffjax.published.lazy import LazyTensor
from diffjax.published.tables import dalle, edm
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


def write_files(run: Run, folder: Path) -> list[str]:
    """Writes the network of a run as safetensors, under the names of its family.

    Args:
      run: a run whose config has `published.naming`, such as an imported one.
      folder: folder to write, which must exist.

    Returns:
      Names of the files: model.safetensors, or those of a network in two files, encoder and decoder.

    Raises:
      UserError: the config names no family, one that cannot be written, or has parameters that the family does not.
    """
    naming, where = run.config.get("published", {}).get("naming", ""), run.workdir.config
    writable = sorted([*file_tables.TABLES, *["compvis"] * (run.config.system in compvis.SYSTEMS)])
    if naming not in writable:
        raise UserError(
            f"published.naming={naming or repr('')} of {where}: --format=safetensors requires one of "
            f"{', '.join(writable)}, as in configs/published; use --format=diffjax"
        )
    try:
        tensors = compvis.write(run) if naming == "compvis" else _network_tensors(run, naming)
    except LookupError as error:
        raise UserError(f"published.naming={naming} of {where}: {error.args[0]}; use --format=diffjax") from error
    files = {"model.safetensors": tensors}
    if naming in file_tables.PARTS:
        files = {
            Path(names[0]).with_suffix(".safetensors").name: below(tensors, f"{part}.")
            for part, names in file_tables.PARTS[naming].items()
        }
    for name, content in files.items():
        safetensors_file.save(folder / name, content, {"format": "pt"})
    return list(files)


def _network_tensors(run: Run, naming: str) -> dict[str, LazyTensor]:
    """Returns the tensors of a network with a table of its own."""
    variables = {name: tree for name, tree in run.variables.items() if name != "frozen"}
    variables["params"] = {"model": variables["params"]["model"]}  # without a discriminator
    arrays = {key: np.asarray(leaf) for key, leaf in flatten(variables).items()}
    if naming == "dalle":
        arrays = dalle.fold_projection(arrays)
    return table.tensors_of(file_tables.TABLES[naming](run.config), arrays)


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
