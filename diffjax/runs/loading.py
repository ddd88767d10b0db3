"""Opens trained runs, and builds the model of a config from the runs that it depends on."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from diffjax import models
from diffjax.data.tokenizer import Tokenizer
from diffjax.errors import UserError, unknown
from diffjax.models import clip as clip_model
from diffjax.models.base import Autoencoder, ContrastiveModel, Model, TrainedStage
from diffjax.models.diffusion.data_space import LatentSpace, latent_space
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.lora import LoraModel, adapt, is_lora
from diffjax.models.parameter_paths import name_of
from diffjax.nn.pretrained import clip_checkpoint, dinov2, efficientnet
from diffjax.published.folders import read_json
from diffjax.runs import averages, exported_weights, mirror, optimized_grids, read_checkpoints
from diffjax.runs.config_files import flatten
from diffjax.runs.datasets import image_spec
from diffjax.runs.dependencies import TRAINING_ONLY, part_config, referenced_run
from diffjax.runs.tokenizers import check_same_tokenizer, load_tokenizer
from diffjax.runs.workdir import Workdir
from diffjax.typing import Clip, Codec, ImageSpec, Variables

TrainedModel = tuple[Model, Variables] | TrainedStage
T = TypeVar("T", bound=Model)
WEIGHT_TYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
      variables: averaged parameters, mutable collections, and under "frozen" the variables of the runs it depends on.
      step: number of training steps that the variables had.
      lora: of a LoRA run, the LoRA and its parameters, which are merged in `variables`.
      ema_length: relative length of the average, if it was reconstructed.
      weights_dtype: type of the kernels, one of WEIGHT_TYPES.
    """

    workdir: Workdir
    config: ConfigDict
    spec: ImageSpec
    system: Model
    variables: Variables
    step: int
    lora: tuple[LoraModel, Variables] | None = None
    ema_length: float | None = None
    weights_dtype: str = "float32"

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

    @property
    def codec(self) -> Codec:
        """The run as a frozen autoencoder. Raises UserError if it is not an autoencoder."""
        return _system(self, Autoencoder, self.workdir.name).codec(self.variables)

    @property
    def clip(self) -> Clip:
        """The run as a frozen CLIP. Raises UserError if it is not a CLIP."""
        return _system(self, ContrastiveModel, self.workdir.name).clip(self.variables)

    @functools.cached_property
    def config_changes(self) -> list[dict[str, Any]]:
        """Config changes during training that affect its numbers, as in config_changes.jsonl."""
        return [change for change in self.workdir.read_config_changes() if change["changes_numbers"]]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of captions; None if the model reads no captions."""
        return load_tokenizer(self.workdir.path) if self.system.text else None


def load(
    path: str | os.PathLike,
    step: int | None = None,
    *,
    averaged: bool = True,
    ema_length: float | None = None,
    data_dir: str | None = None,
    weights_dtype: str = "float32",
) -> Run:
    """Opens a run with its averaged parameters, also while it trains.

    Args:
      path: folder of the run.
      step: step of the checkpoint; None: the newest one.
      averaged: False: the parameters of the last step. Exported runs have only averaged ones.
      ema_length: relative length of the average, which is reconstructed (averages.py); None: the average of
        train.ema_decay.
      data_dir: folder of the data set; None: `data.dir` of the run.
      weights_dtype: type of the kernels, one of WEIGHT_TYPES. "bfloat16" needs half the memory; layers compute in the
        same types.

    Raises:
      UserError: there is no run or no such checkpoint, a file of the run is damaged, or an unknown `weights_dtype`.
    """
    if weights_dtype not in WEIGHT_TYPES:
        raise unknown("weights_dtype", weights_dtype, WEIGHT_TYPES)
    workdir = Workdir(path)
    if step is not None:
        mirror.fetch_checkpoint(workdir.checkpoints / str(step))
    config = workdir.read_config()
    if data_dir is not None:
        config.data.dir = data_dir
    try:
        spec = image_spec(config)
        system = build_model(config, workdir.path)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"{workdir.config}: no model can be built from it ({type(error).__name__}: {reason}); restore the file, or "
            "train the run again if an older version of diffjax wrote it"
        ) from error
    if isinstance(system, DiffusionModel):
        system = dataclasses.replace(system, optimized_grids=optimized_grids.read(workdir))
    lora = None
    if not system.losses:
        if step is not None:
            raise UserError(f"--checkpoint={step}: {path} is a pipeline, which has no checkpoints; omit the flag")
        if ema_length is not None:
            raise UserError(f"--ema_length={ema_length:g}: {path} is a pipeline, without weights; omit the flag")
        variables, step = {"params": {}}, 0
    else:
        adapter = adapt(config, system, read_lora_base(workdir, system)) if is_lora(config) else None
        if ema_length is None:
            variables, step = _read_variables(workdir, adapter or system, step, averaged)
        else:
            variables, step = averages.load_average(
                workdir, (adapter or system).variable_shapes, config.train.get("ema_lengths", ()), ema_length, step
            )
        if adapter:
            lora = adapter, variables["params"]
            variables = {**variables, "params": jax.jit(adapter.merge)(adapter.frozen["base"], variables["params"])}
    variables = _with_dtype({**variables, "frozen": system.frozen}, weights_dtype)
    system = dataclasses.replace(system, frozen=variables["frozen"])
    return Run(workdir, config, spec, system, variables, step, lora, ema_length, weights_dtype)


def _with_dtype(variables: Variables, dtype: str) -> Variables:
    """Returns variables with kernels, those of frozen models included, in a type.

    Layers convert kernels to the type that they compute in, so that no computation changes its type. Other parameters
    stay float32: biases, embeddings and codebooks take little memory.
    """

    def convert(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if name_of(path) == "kernel" else leaf

    return variables if dtype == "float32" else jax.tree.map_with_path(convert, variables)


def read_template(workdir: Workdir) -> tuple[Variables, tuple[float, ...]]:
    """Returns the shapes of the variables that a run trains, and the relative lengths of its stored averages.

    Raises:
      UserError: there is no run, or it is a pipeline.
    """
    config = workdir.read_config()
    model = build_model(config, workdir.path)
    if not model.losses:
        raise UserError(f"--workdir={workdir.name}: is a pipeline, without weights; name one of its parts")
    adapter = adapt(config, model, model.variable_shapes["params"]) if is_lora(config) else None
    return (adapter or model).variable_shapes, config.train.get("ema_lengths", ())


def read_lora_base(workdir: Workdir, model: Model) -> Variables:
    """Returns the parameters that a LoRA run adapts.

    Args:
      model: the adapted model.

    Raises:
      UserError: the file is missing or damaged, or does not fit the model.
    """
    return exported_weights.load(workdir.base, {"params": model.variable_shapes["params"]})["params"]


def _read_variables(workdir: Workdir, model: Model, step: int | None, averaged: bool) -> tuple[Variables, int]:
    """Returns the parameters and collections of a run, and their step."""
    template = model.variable_shapes
    if workdir.weights.exists():
        exported_step = exported_weights.step_of(workdir.weights)
        if step not in (None, exported_step):
            raise UserError(
                f"--checkpoint={step}: {workdir.name} is exported, with step {exported_step} only; omit the flag"
            )
        omitted = tuple(f"{prefix}{name}/" for name in model.training_only for prefix in ("params/", ""))
        return exported_weights.load(workdir.weights, template, omitted=omitted), exported_step
    if not workdir.checkpoints.exists():
        raise UserError(
            f"{workdir.path} has no checkpoint yet; continue its training with launch.py train --workdir={workdir.path}"
        )
    return read_checkpoints.read_variables(workdir.checkpoints, template, step, averaged=averaged)


def build_model(
    config: ConfigDict,
    workdir: Path | None = None,
    *,
    parent: ConfigDict | None = None,
    abstract: bool = False,
    training: bool = False,
) -> Model:
    """Builds the model of a config, with the trained runs that the config refers to.

    Args:
      workdir: folder of the run, in which its parts are; None: the config has no run.
      parent: config that this one is a part of, when the parts are not trained yet.
      abstract: build before the parts are trained: the variables of parts are jax.ShapeDtypeStruct, and parts are not
        opened. Runs that the config refers to by their path are opened.
      training: load also what only training needs, such as a teacher or a perceptual loss.

    Raises:
      UserError: a run or part does not exist, or does not fit the config.
    """
    spec, parts, text_runs = image_spec(config), {}, {}
    fields = flatten(config)
    for field, open_run in _OPENERS.items():
        if not fields.get(field) or (field in TRAINING_ONLY and not (training or abstract)):
            continue
        name = field.partition(".")[0]
        if abstract and (owner := config_with_part(config, field, parent, workdir)):
            parts[name] = _untrained_part(owner, field, fields[field], spec)
        else:
            run = _trained_run(config, field, workdir)
            parts[name] = open_run(run, spec)
            if name != "alignment" and parts[name][0].text:  # the image encoder of an alignment reads no captions
                text_runs[field] = run
    if not abstract:
        check_same_tokenizer(text_runs)
    if training and config.get("loss", {}).get("perceptual_file"):
        try:
            parts["features"] = efficientnet.load(config.loss.perceptual_file)
        except UserError as error:
            raise UserError(f"loss.perceptual_file: {error}") from error
    return models.build(config, spec, **parts)


def with_codec(run: Run, path: str | os.PathLike) -> Run:
    """Returns a latent diffusion model with another autoencoder of the same latents, such as a tiny one for previews.

    Args:
      run: the latent diffusion model.
      path: run of the autoencoder, whose images may be of another size.

    Raises:
      UserError: the run is not latent diffusion, or the other is no autoencoder of such latents.
    """
    model = run.system
    if not isinstance(model, DiffusionModel) or not isinstance(model.data_space, LatentSpace):
        raise UserError(f"--codec={path}: requires latent diffusion, system=latent (this run: {run.config.system})")
    codec = load(path)
    config = ConfigDict(codec.config.copy_and_resolve_references()).unlock()
    config.data.image_size = run.spec.size
    resized = dataclasses.replace(codec, system=build_model(config, codec.workdir.path))
    autoencoder = _system(resized, Autoencoder, f"--codec={path}")
    space = latent_space(autoencoder, codec.variables)
    if space.shape != model.data_space.shape or codec.spec.channels != run.spec.channels:
        theirs, ours = ("x".join(map(str, shape)) for shape in (space.shape, model.data_space.shape))
        raise UserError(
            f"--codec={path}: has latents of {theirs}, but those of the run are {ours}; choose an autoencoder of them"
        )
    frozen = {**model.frozen, "codec": codec.variables}
    system = dataclasses.replace(model, data_space=space, frozen=frozen)
    return dataclasses.replace(run, system=system, variables={**run.variables, "frozen": frozen})


def open_clip(path: str | os.PathLike, spec: ImageSpec) -> TrainedModel:
    """Opens a frozen CLIP for images of `spec`.

    Args:
      path: folder of a run, or of published weights, which accept images of any size.

    Raises:
      UserError: the folder is neither, or the run is for other images.
    """
    if clip_checkpoint.is_published(Path(path)):
        model, variables = clip_model.published(Path(path))
        return model, variables
    run = load(path)
    model = _system(run, ContrastiveModel, f"clip={path}")
    if not model.accepts_any_size:
        _check_images(f"clip={path}", run.spec, spec)
    return model, run.variables


def _open_image_encoder(path: Path, spec: ImageSpec) -> TrainedModel | dinov2.Published:
    """Opens a folder of a published DINOv2, or a CLIP."""
    if clip_checkpoint.is_published(path) and read_json(path / "config.json")["model_type"] == "dinov2":
        return dinov2.load(path)
    return open_clip(path, spec)


def open_codec(path: str | os.PathLike, spec: ImageSpec) -> tuple[Run, Autoencoder]:
    """Opens the run of an autoencoder for images of `spec`. Raises UserError for other runs and images."""
    return _open(f"codec={path}", Autoencoder, path, spec)


def _open_codec(path: Path, spec: ImageSpec) -> TrainedModel:
    run, model = open_codec(path, spec)
    return model, run.variables


def _open(name: str, kind: type[T], path: str | os.PathLike, spec: ImageSpec) -> tuple[Run, T]:
    """Opens a run for images of `spec`; an error for a run of another kind starts with `name`."""
    run = load(path)
    model = _system(run, kind, name)
    _check_images(name, run.spec, spec)
    return run, model


def _open_stage(path: Path, spec: ImageSpec) -> TrainedStage:
    run = load(path)
    _check_images(f"the stage {path}", run.spec, spec)
    return TrainedStage(run.system, run.variables, run.config.get("sampler", {}))


_STAGES = ("base", "prior", "ar_prior", "pca", "decoder", "upsampler", "upsampler_2", "last_step", "noised_clip")
_OPENERS: dict[str, Callable[[Path, ImageSpec], Any]] = {  # by config field
    "codec": _open_codec,
    "clip": open_clip,
    "alignment.clip": _open_image_encoder,
    **dict.fromkeys((*_STAGES, "teacher"), _open_stage),
}


def config_with_part(
    config: ConfigDict, field: str, parent: ConfigDict | None, workdir: Path | None
) -> ConfigDict | None:
    """Returns the config, this one or its parent, that has the part of a field; None: the field names a run on disk."""
    value = flatten(config)[field]
    if not value.startswith("@"):
        return None
    for candidate in (config, parent):
        if candidate is not None and value[1:] in candidate.get("parts", {}):
            return candidate
    if parent is None and workdir and referenced_run(config, field, workdir).exists():  # a sibling
        return None
    raise UserError(f"{field}={value}: the config has no part {value[1:]}; add it to `parts`, or pass a run's folder")


def _untrained_part(owner: ConfigDict, field: str, value: str, spec: ImageSpec) -> TrainedStage:
    """Returns the model of a part of `owner`, with the shapes of its variables."""
    part = part_config(owner, value[1:])
    system = build_model(part, parent=owner, abstract=True)
    if not (isinstance(system, ContrastiveModel) and system.accepts_any_size):
        _check_images(f"{field}={value}", image_spec(part), spec)
    return TrainedStage(system, {**system.variable_shapes, "frozen": system.frozen}, part.get("sampler", {}))


def _trained_run(config: ConfigDict, field: str, workdir: Path | None) -> Path:
    """Returns the folder of the run that a field refers to. Raises UserError if it is a part without a config."""
    run = referenced_run(config, field, workdir)
    if (value := flatten(config)[field]).startswith("@") and not Workdir(run).config.exists():
        raise UserError(
            f"{field}={value}: {run} is not trained yet; continue with `python launch.py train --workdir={run.parent}`"
        )
    return run


def _system(run: Run, kind: type[T], name: str) -> T:
    """Returns the model of a run. Raises UserError, which starts with `name`, if it is of another kind."""
    if not isinstance(run.system, kind):
        words = "an autoencoder" if kind is Autoencoder else "a CLIP"
        raise UserError(f"{name}: must be {words}, not a run of system={run.config.system}; choose another run")
    return run.system


def _check_images(name: str, theirs: ImageSpec, ours: ImageSpec) -> None:
    if theirs[:2] != ours[:2]:
        raise UserError(
            f"{name}: was trained on {theirs.size}x{theirs.size} images with {theirs.channels} channels, but this "
            f"config has {ours.size}x{ours.size} with {ours.channels}; make data.name and data.image_size agree"
        )
