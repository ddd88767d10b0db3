"""Exports networks as files with the names of the code that they were published with, as `single_file` reads them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from diffjax.conversion import autoencoder_config
from diffjax.conversion.components import refused
from diffjax.conversion.file_tables import TABLES, part_files
from diffjax.conversion.single_file import openai_unet
from diffjax.latents import statistics
from diffjax.models.parameter_paths import flatten
from diffjax.published import table
from diffjax.published.table import Block, Table
from diffjax.published.tables import autoencoder, dalle
from diffjax.runs.loading import Run


def export_original(run: Run, out: Path) -> list[str]:
    """Writes the network of a run as safetensors, with the names of `published.naming`.

    Args:
      run: run of a network that is published in such files: Improved DDPM, ADM, first stages of latent diffusion, DiT,
        DALL-E's discrete VAE, TAESD, EDM.
      out: folder to write, which must exist.

    Returns:
      The names of the files: model.safetensors, or those of encoder and decoder.

    Raises:
      UserError: the config has no such naming, or the network has a parameter that these files do not have.
    """
    naming = run.config.get("published", {}).get("naming", "")
    if naming not in _TABLES:
        reason = f"--format=safetensors requires one of {', '.join(sorted(_TABLES))}; use --format=diffusers"
        raise refused(run.workdir.config, "published.naming", naming, reason)
    variables = {name: tree for name, tree in run.variables.items() if name != "frozen"}
    variables["params"] = {"model": variables["params"]["model"]}  # without a discriminator
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    if naming == "dalle":
        arrays = dalle.fold_projection(arrays)
    try:
        tensors = table.write(_TABLES[naming](run), arrays)
    except LookupError as error:
        raise refused(run.workdir.config, "published.naming", naming, f"cannot be exported: {error}") from error
    files = {"model.safetensors": tensors}
    if parts := part_files(naming):
        files = {
            f"{Path(candidates[0]).stem}.safetensors": {
                name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")
            }
            for part, candidates in parts.items()
        }
    for name, content in files.items():
        save_file(content, out / name, metadata={"format": "pt"})
    return list(files)


def _openai(run: Run) -> Table:
    return {"params/model": Block("", openai_unet(run.config, side=run.config.data.image_size))}


def _compvis(run: Run) -> Table:
    config = run.config
    if config.system not in ("vae", "vqvae") or config.model.architecture != "ldm":
        reason = "only first stages are exported with published.naming=compvis; use --format=diffusers"
        raise refused(run.workdir.config, "system", config.system, reason)
    return autoencoder_config.table(config, autoencoder.compvis(), float(statistics.scale(run.variables["latents"])))


def _of_config(function: Callable[[ConfigDict], Table]) -> Callable[[Run], Table]:
    return lambda run: function(run.config)


_TABLES: dict[str, Callable[[Run], Table]] = {
    **{naming: _of_config(function) for naming, function in TABLES.items()},
    "compvis": _compvis,
    "openai": _openai,
}
