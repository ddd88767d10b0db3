"""Checks that stored latents are those that a config would compute, and that pairs of noise and samples fit it."""

import os
from typing import Any

from ml_collections import ConfigDict

from diffjax import remote
from diffjax.cluster import multihost
from diffjax.data.examples import DatasetInfo, Source
from diffjax.data.latents_store import Index, open_store, read_index
from diffjax.data.records import Query
from diffjax.errors import UserError
from diffjax.models.base import Model
from diffjax.models.capabilities import is_diffusion
from diffjax.models.diffusion.data_space import LatentSpace
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.parameter_paths import tree_hash
from diffjax.runs import pretrained
from diffjax.runs.config_files import flatten as flatten_config
from diffjax.runs.datasets import uses_store
from diffjax.typing import Variables

_IMAGE_FIELDS = ("name", "dir", "image_size", "fit", "background", "flip")  # of a config's `data`, stored in the index


def check_config(config: ConfigDict) -> None:
    """Raises UserError for a config on stored examples whose autoencoder or CLIP is not trained yet."""
    if not uses_store(config):
        return
    for field, value in flatten_config(config).items():
        if isinstance(value, str) and value.startswith("@") and not field.startswith("parts."):
            codec = read_index(config.data.dir, config.data.name).codec
            run = codec["workdir"] if codec and field == "codec" else "RUN"
            raise UserError(
                f"{field}={value}: is trained with the run, but data.name={config.data.name} requires a trained run; "
                f"set --config.{field}={run}"
            )


def check_model(config: ConfigDict, model: Model) -> None:
    """Checks that the stored examples of a config fit its model; reads all of their shards.

    Latents must be those that the model would compute.

    Raises:
      UserError: they are of another autoencoder or shape, lack mirror images, are damaged, or the model needs images.
    """
    if not uses_store(config):
        return
    name, directory = config.data.name, config.data.dir
    if name == "latents" and not (is_diffusion(model) and isinstance(model.data_space, LatentSpace)):
        raise UserError(
            f"data.name=latents: is only supported for system=latent, not {config.system}; set the images' data set"
        )
    if not is_diffusion(model):
        raise UserError(
            f"data.name=pairs: requires a diffusion model, not system={config.system}; set the images' data set"
        )
    if names := [name for name, one in model.conditions.each.items() if one.reads_image]:
        raise UserError(
            f"data.name={name}: conditions.{names[0]} is computed from images; remove it, or set the images' data set"
        )
    if model.alignment:
        raise UserError(
            f"data.name={name}: has no images for the section alignment; remove it, or set the images' data set"
        )
    index = read_index(directory, name)
    if name == "pairs":
        _check_pairs(config, model, index)
    if index.codec and index.codec["digest"] != tree_hash(model.frozen["codec"]):
        raise UserError(
            f"codec={config.codec}: its weights are not those that encoded {directory} ({index.codec['workdir']} at "
            f"step {index.codec['step']}); set that run, or encode the images again"
        )
    if name == "latents" and config.data.flip and not index.has_mirrored:
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
            open_store(Query(config.data.name, "", directory, split)).check_content()


def _check_pairs(config: ConfigDict, model: DiffusionModel, index: Index) -> None:
    """Raises UserError if pairs of noise and samples do not fit a model."""
    theirs, ours = ("x".join(map(str, shape)) for shape in (index.arrays["x0"], model.data_space.shape))
    if theirs != ours or bool(index.codec) != isinstance(model.data_space, LatentSpace):
        kinds = ["latents" if is_latent else "pixels" for is_latent in (index.codec, not index.codec)]
        raise UserError(
            f"data.name=pairs: {config.data.dir} has {kinds[0]} of {theirs}, but the run has {ours}"
            f"{f' {kinds[1]}' * (theirs == ours)}; sample pairs of a run with this size and system"
        )
    if model.process.couples_noise:
        raise UserError(
            f"diffusion.coupling={model.process.coupling.name}: pairs have noise of their own; set it to independent"
        )
    if model.process.loss.name in ("vlb", "hybrid"):
        raise UserError(
            f"diffusion.loss={model.process.loss.name}: is the bound with independent noise, which pairs do not have; "
            "set it to mse, or to a loss of flow maps"
        )
    if config.data.flip:
        raise UserError("data.flip=True: the noise of a mirrored sample is not known; set it to False for pairs")
    if model.nonleaky_augmentation:
        raise UserError("data.augment.prob: pairs are not augmented, as their noise would be wrong; set it to 0")


def example_fields(config: ConfigDict, model: Model, source: Source) -> tuple[str, ...]:
    """Returns the fields of the examples of a source that the loss of a model reads.

    Raises:
      UserError: the model is conditioned on a number, and the examples do not have it.
    """
    example = source[0]
    stored = [name for name in ("latent", "noise", "x0", *text_arrays(config)) if name in example]
    if model.reads_number and uses_store(config):
        raise UserError(
            f"conditions.number: stored {config.data.name} do not have numbers; train on the images, or remove it"
        )
    if model.reads_number and "number" not in example:
        raise UserError(
            "data.number='': conditions.number requires a number for each image; set it to a column of the folder's "
            "metadata.jsonl, or to an array of npz:FILE"
        )
    fields = (*(stored or ["image"]), "label", *["tokens"] * (model.text is not None))
    return (*fields, *["number"] * model.reads_number)


def stored_arrays(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of stored arrays that a config is trained on, by name; empty: it is trained on images."""
    if not uses_store(config):
        return {}
    stored = read_index(config.data.dir, config.data.name).arrays
    return {name: tuple(stored[name]) for name in ("latent", "noise", "x0", *text_arrays(config)) if name in stored}


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


def describe_images(data: ConfigDict, info: DatasetInfo) -> dict[str, Any]:
    """Returns the entry of an index for images.

    Args:
      data: section `data` of a config of the images.
      info: their channels and classes.
    """
    is_path = data.dir or data.name.partition(":")[0] in ("folder", "npz", "tar")
    local = os.path.abspath(os.path.expanduser(data.dir)) if is_path else ""  # "": the set needs none
    directory = remote.url_of(data.dir) or local
    return {name: data[name] for name in _IMAGE_FIELDS if name in data} | {"dir": directory} | info._asdict()
