"""Checks that stored latents are those that a config would compute from the images."""

import os
from typing import Any

from ml_collections import ConfigDict

from diffjax.cluster import multihost
from diffjax.data.examples import Source
from diffjax.data.latents_store import open_latents, read_index
from diffjax.data.records import Query
from diffjax.errors import UserError
from diffjax.models.base import Model
from diffjax.models.capabilities import is_diffusion
from diffjax.models.diffusion.data_space import LatentSpace
from diffjax.models.parameter_paths import tree_hash
from diffjax.runs import pretrained
from diffjax.runs.config_files import flatten as flatten_config
from diffjax.runs.datasets import uses_latents
from diffjax.typing import Variables


def check_config(config: ConfigDict) -> None:
    """Raises UserError for a config on stored latents whose autoencoder or CLIP is not trained yet."""
    if not uses_latents(config):
        return
    for field, value in flatten_config(config).items():
        if isinstance(value, str) and value.startswith("@") and not field.startswith("parts."):
            run = read_index(config.data.dir).codec["workdir"] if field == "codec" else "RUN"
            raise UserError(
                f"{field}={value}: is trained with the run, but data.name=latents requires a trained run; set "
                f"--config.{field}={run}"
            )


def check_model(config: ConfigDict, model: Model) -> None:
    """Checks that the stored latents of a config are those that its model would compute; reads all of their shards.

    Raises:
      UserError: they are of another autoencoder, lack mirror images, are damaged, or the model requires images.
    """
    if not uses_latents(config):
        return
    directory = config.data.dir
    if not is_diffusion(model) or not isinstance(model.data_space, LatentSpace):
        raise UserError(
            f"data.name=latents: is only supported for system=latent, not {config.system}; set the images' data set"
        )
    if names := [name for name, one in model.conditions.each.items() if one.reads_image]:
        raise UserError(
            f"data.name=latents: conditions.{names[0]} is computed from images; remove it, or set the images' data set"
        )
    index = read_index(directory)
    if index.codec["digest"] != tree_hash(model.frozen["codec"]):
        raise UserError(
            f"codec={config.codec}: its weights are not those that encoded {directory} ({index.codec['workdir']} at "
            f"step {index.codec['step']}); set that run, or encode the images again"
        )
    if config.data.flip and not index.has_mirrored:
        raise UserError(
            f"data.flip=True: {directory} has no latents of mirror images; set it to False, or encode with "
            "--config.data.flip=True"
        )
    if index.clip and "clip" in model.frozen and index.clip["digest"] != tree_hash(model.frozen["clip"]):
        raise UserError(
            f"clip={config.clip}: its weights are not those that encoded the captions of {directory} "
            f"({index.clip['workdir']}); set that run, or encode again"
        )
    if multihost.is_main_process():
        for split in index.splits:
            open_latents(Query(config.data.name, "", directory, split)).check_content()


def example_fields(config: ConfigDict, model: Model, source: Source) -> tuple[str, ...]:
    """Returns the fields of the examples of a source that the loss of a model reads.

    Raises:
      UserError: the model is conditioned on a number, and the examples do not have it.
    """
    example = source[0]
    stored = [name for name in ("latent", *text_arrays(config)) if name in example]
    if model.reads_number and uses_latents(config):
        raise UserError("conditions.number: stored latents do not have numbers; train on the images, or remove it")
    if model.reads_number and "number" not in example:
        raise UserError(
            "data.number='': conditions.number requires a number for each image; set it to a column of the folder's "
            "metadata.jsonl, or to an array of npz:FILE"
        )
    fields = (*(stored or ["image"]), "label", *["tokens"] * (model.text is not None))
    return (*fields, *["number"] * model.reads_number)


def stored_arrays(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of stored arrays that a config is trained on, by name; empty: it is trained on images."""
    if not uses_latents(config):
        return {}
    stored = read_index(config.data.dir).arrays
    return {name: tuple(stored[name]) for name in ("latent", *text_arrays(config)) if name in stored}


def text_arrays(config: ConfigDict) -> list[str]:
    """Returns which arrays a config's model uses that a frozen CLIP computes of captions.

    They are "text_states", the states of the tokens, and "text_embedding".
    """
    section = config.get("conditions", {}).get("clip_text")
    if section is None:
        return []
    return ["text_states"] * section.get("states", True) + ["text_embedding"] * section.get("embedding", False)


def describe(path: str | os.PathLike, step: int | None, variables: Variables) -> dict[str, Any]:
    """Returns the entry of an index for a trained model."""
    return {"workdir": os.path.abspath(pretrained.resolve(path)), "step": step, "digest": tree_hash(variables)}
