"""Samples of a run from the flags of `launch.py sample`: the one way from flags to images."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from diffjax import __version__, io
from diffjax.errors import UserError, note
from diffjax.inference import edits, image_grids
from diffjax.inference.batching import BatchedFunction, DataParallelMap, limit_batch_size
from diffjax.inference.guidance_models import attach_guidance_models, check_guidance_flags
from diffjax.inference.image_grids import Layout
from diffjax.inference.overrides import SettingsFactory, single_setting
from diffjax.inference.prompts import (
    Prompts,
    check_label,
    check_text,
    read_file,
    sample_prompts,
    take_numbers,
    with_numbers,
)
from diffjax.inference.requirements import check_samples_images
from diffjax.inference.reranking import Reranker, best_of, prepare_reranking
from diffjax.inference.sample_flags import SampleFlags, check_sample_flags, is_variation
from diffjax.inference.sampler_runner import Listener, SampleRunner
from diffjax.models.base import Model
from diffjax.models.capabilities import is_pipeline, is_text_conditioned, takes_negative_prompts
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.images import to_grey_levels
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.nn.pretrained import clip_checkpoint
from diffjax.runs.checkpoint_files import list_steps
from diffjax.runs.config_files import to_json
from diffjax.runs.datasets import dataset_info, image_spec
from diffjax.runs.loading import Run, with_codec
from diffjax.runs.workdir import Workdir

# Flags of files and folders.
PATHS = ("workdir", "classifier", "weak", "clip", "codec", "prompts", "image", "initial_image", "mask", "measure")

_DECODED_AT_ONCE = 16  # images per batch of `RunSampler.decode`


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples of a run.

    Attributes:
      images: in [0, 255].
      seeds: of the images.
      prompts: conditions of the images; a prompt of a text-conditioned run holds for adjacent images.
      scores: CLIP similarity of each image and its prompt, with --best_of; else None.
      layout: rows and columns of the grid of the images.
      evaluations: see `SampleRunner`; of all samples, with --best_of also of those that are not kept.
    """

    images: UInt8[np.ndarray, "N H W C"]
    seeds: Int[np.ndarray, " N"]
    prompts: Prompts
    scores: Float[np.ndarray, " N"] | None
    layout: Layout
    evaluations: Int[np.ndarray, " M"] | None


@dataclasses.dataclass(frozen=True)
class Request:
    """Samples to compute, checked against the run.

    Attributes:
      flags: flags of `sample`.
      settings: sampling settings.
      prompts: conditions of the samples.
      layout: rows and columns of the grid of the images.
      batch_size: number of samples per batch.
      seeds: seed of each sample; None: those of `best_of`.
      candidates: number of samples per prompt.
      keep: number of samples to keep per prompt.
      reranker: CLIP that ranks the samples; None: all are kept.
      shown: images of the grid before the samples, by name: an image and its measurement.
    """

    flags: SampleFlags
    settings: SamplingSettings
    prompts: Prompts
    layout: Layout
    batch_size: int
    seeds: np.ndarray | None = None
    candidates: int = 1
    keep: int = 1
    reranker: Reranker | None = None
    shown: Mapping[str, UInt8[np.ndarray, "H W C"]] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of samples, with those that are not kept."""
        return self.candidates * self.prompts.size


class RunSampler:
    """A run and the models that guide it, with the samplers that are compiled for them.

    Attributes:
      trained: the run, with the autoencoder of --codec.
      model: its model, with those of --classifier and --weak.
      variables: variables of `model`.
    """

    def __init__(self, trained: Run, flags: Mapping[str, Any]):
        """Opens the models of --codec, --classifier and --weak.

        Raises:
          UserError: the run does not sample images, or another model does not fit it.
        """
        self.trained = with_codec(trained, flags["codec"]) if flags.get("codec") else trained
        self.model, self.variables = attach_guidance_models(self.trained, flags)
        check_samples_images(self.trained)
        self._runners: dict[int, SampleRunner] = {}
        self._decoders: dict[str, BatchedFunction] = {}

    @property
    def compilations(self) -> int:
        """Number of samplers that were compiled."""
        return sum(runner.compilations for runner in self._runners.values())

    def prepare(self, flags: SampleFlags, captions: Sequence[str], *, capacity: int | None = None) -> Request:
        """Returns the samples to compute for flags of `sample`; encodes images of editing.

        Args:
          captions: prompts of --prompt or --prompts: see `check_files`.
          capacity: number of steps to pad time grids to, so that fewer steps share the compilation; it does not change
            the samples.

        Raises:
          UserError: flags that exclude one another, or that the run does not support.
        """
        check_guidance_flags(self.trained, flags.values)
        check_sample_flags(flags, self.trained)
        settings = SettingsFactory(self.model, self.trained.config.sampler)(capacity, **overrides(flags))
        if is_variation(flags, self.trained):
            return self._request(flags, settings, edits.variations(flags, self.trained, settings))
        _note_negative_prompt(self.trained.system, flags, settings)
        prompts, keep = sample_prompts(
            self.trained, self.model.classes, flags.num, captions, flags.label, flags.negative_prompt
        )
        prompts = with_numbers(self.trained, prompts, _numbers(flags))
        candidates, reranker = prepare_reranking(
            self.trained, captions, keep, flags.best_of, clip=flags.clip, batch_size=flags.batch_size
        )
        if flags.interpolate:
            grid = edits.interpolate_latents(flags, self.trained, settings, prompts)
            return self._request(flags, settings, grid)
        if flags.measure:
            measured = edits.measure(flags, self.trained, settings, prompts)
            grid = edits.SampleGrid(measured.prompts, None, Layout(title=edits.description(flags)))
            ranked = {"candidates": candidates, "keep": keep, "reranker": reranker}
            return self._request(flags, measured.settings, grid, shown=measured.shown, **ranked)
        prompts = edits.with_image(flags, self.trained, prompts)
        grid = edits.SampleGrid(prompts, None, self._layout(flags, prompts, keep))
        return self._request(flags, settings, grid, candidates=candidates, keep=keep, reranker=reranker)

    def _request(
        self, flags: SampleFlags, settings: SamplingSettings, grid: edits.SampleGrid, **reranking: Any
    ) -> Request:
        """Returns a request; prints notes of values that are rounded."""
        self._note_rounding(flags, settings)
        total = reranking.get("candidates", 1) * grid.prompts.size
        size = limit_batch_size(flags.batch_size, total, is_given="batch_size" in flags.given_flags)
        return Request(flags, settings, grid.prompts, grid.layout, size, grid.seeds, **reranking)

    def sample(
        self,
        request: Request,
        *,
        progress: Callable[[int], Any] = lambda images: None,
        listener: Listener | None = None,
    ) -> Samples:
        """Computes samples.

        Args:
          progress, listener: see SampleRunner.
        """
        prompts, size = request.prompts, request.batch_size
        if size not in self._runners:
            self._runners[size] = SampleRunner(self.model, batch_size=size)
        runner = self._runners[size]
        options: dict[str, Any] = {"progress": progress, "listener": listener}
        if request.seeds is not None:
            images = runner(self.variables, request.seeds, prompts.conditions, request.settings, **options)
            return Samples(images, request.seeds, prompts, None, request.layout, runner.evaluations)
        options |= {"candidates": request.candidates, "keep": request.keep, "seed": request.flags.seed}
        best = best_of(runner, self.variables, prompts, request.settings, request.reranker, **options)
        return Samples(best.images, best.seeds, prompts, best.scores, request.layout, runner.evaluations)

    def decode(self, stage: str, x: Float[np.ndarray, "N ..."]) -> UInt8[np.ndarray, "N H W C"]:
        """Returns images of data, such as the latents of an `ObservedStep`.

        Args:
          stage: pipeline stage of a diffusion model; "" for other models.
        """
        model, variables = self.trained.system, self.trained.variables
        if is_pipeline(model):
            model, variables = model.stages[stage].model, variables["frozen"][stage]
        if not isinstance(model, DiffusionModel):
            raise ValueError(f"{stage or self.trained.config.system} is not a diffusion model")
        decode = model.data_space.decode
        if stage not in self._decoders:
            self._decoders[stage] = DataParallelMap(_DECODED_AT_ONCE).compile(
                lambda variables, x: to_grey_levels(decode(variables, x)), "the decoder"
            )
        return self._decoders[stage](variables, x)

    def recorder(self, request: Request, seeds: np.ndarray, command: str) -> Callable[[int | None], dict[str, Any]]:
        """Returns a function from the index of a sample (None: the grid of all) to the settings to store in its image.

        Args:
          seeds: seeds of the samples.
          command: the command line.
        """
        flags, prompts, trained = request.flags, request.prompts, self.trained
        stored = {name: flags.values[name] for name in sorted(flags.given_flags - {"out", "from"})}
        for name in PATHS:
            if name in stored and Path(stored[name]).exists():
                stored[name] = str(Path(stored[name]).resolve())
        if list_steps(trained.workdir.checkpoints):
            stored["checkpoint"] = trained.step
        common = {
            "command": command,
            "version": __version__,
            "config": io.short_hash(to_json(trained.config)),
            "checkpoint": trained.step,
            "sampler": trained.config.get("sampler", ConfigDict()).to_dict() | overrides(flags),
            "devices": f"{jax.devices()[0].device_kind} x {jax.local_device_count()}",
            "flags": stored,
        }
        keep = max(len(seeds) // prompts.size, 1)

        def settings_of(index: int | None) -> dict[str, Any]:
            if index is None:
                return common | {"index": None, "seed": flags.seed, "label": flags.label, "prompt": flags.prompt}
            row, sampler = index // keep, common["sampler"]
            if "number" in prompts.conditions:
                sampler = sampler | {"number": float(prompts.conditions["number"][row])}
            label = int(prompts.conditions["label"][row]) if self.model.classes else None
            prompt = prompts.captions[row] if prompts.captions else None
            sample = {"index": index, "seed": int(seeds[index]), "label": label, "prompt": prompt, "sampler": sampler}
            return common | sample

        return settings_of

    def _note_rounding(self, flags: SampleFlags, settings: SamplingSettings) -> None:
        """Prints a note if --strength is rounded to whole steps, or --keep_fraction to rows of tokens."""
        first = settings.stages[self.model.main_stage] if is_pipeline(self.model) else settings
        if flags.strength is not None:
            steps = first.num_steps
            taken = steps - int(first["begin"])
            if abs(taken - flags.strength * steps) > 1e-6:
                note(f"--strength={flags.strength:g}: rounded to whole steps, the last {taken} of {steps}")
        if flags.initial_image:
            note(f"--initial_image={flags.initial_image}: keeps the first {first['rows']} rows of tokens")

    def _layout(self, flags: SampleFlags, prompts: Prompts, keep: int) -> Layout:
        """Returns the layout of the grid: a row per prompt or a column per class; a title for one of them."""
        names, classes = dataset_info(self.trained.config).class_names, self.model.classes
        if is_text_conditioned(self.model):
            captions = prompts.captions or []
            layout = Layout(keep, captions) if prompts.size > 1 else Layout(title=captions[0])
        elif numbers := _numbers(flags):
            layout = Layout(len(numbers), column_labels=[f"{value:g}" for value in numbers])
        elif flags.label is None:
            layout = image_grids.class_layout(classes, prompts.size, names)
        elif isinstance(flags.label, int):
            name = image_grids.class_label(flags.label, classes, names)
            layout = Layout(title=f"class {name.removeprefix('class ')}")
        else:
            layout = Layout()
        return layout._replace(title="; ".join(filter(None, [layout.title, edits.description(flags)])))


def check_files(flags: SampleFlags) -> list[str]:
    """Returns the prompts of the flags; checks every file that they name, before the run is loaded.

    Raises:
      UserError: a file cannot be read, or a prompt or label is not valid.
    """
    config = Workdir(flags.workdir).read_config()
    if flags.label is not None and (classes := image_spec(config).classes):
        check_label(flags.label, classes)
    for name in ("classifier", "weak", "clip", "codec"):
        path = flags.values.get(name)
        if path and not (name == "clip" and clip_checkpoint.is_published(path)):
            Workdir(path).read_config()
    edits.check_files(flags)
    if flags.prompt and flags.prompts:
        raise UserError("--prompts: is not supported with --prompt; pass one of --prompt=TEXT and --prompts=FILE")
    for name in ("prompt", "negative_prompt", "base_prompt"):
        if flags.values.get(name):
            check_text(f"--{name}", flags.values[name])
    if flags.prompt:
        return [flags.prompt]
    return read_file(flags.prompts) if flags.prompts else []


def _note_negative_prompt(model: Model, flags: SampleFlags, settings: SamplingSettings) -> None:
    """Prints a note if there is a negative prompt, and no stage that takes it is guided."""
    models = {name: stage.model for name, stage in model.stages.items()} if is_pipeline(model) else {"": model}
    guided = [name for name, stage in (settings.stages or {"": settings}).items() if stage.is_guided]
    if flags.negative_prompt and not any(takes_negative_prompts(models[name]) for name in guided):
        note("--negative_prompt: has no effect at guidance=1; set --guidance")


def overrides(flags: SampleFlags) -> dict[str, Any]:
    """Returns the sampling settings that flags set."""
    names = ("strength", "resample_steps", "keep_fraction", "measure", "measure_noise", "inverse")
    edit = {name: flags.values.get(name) for name in names}
    if flags.measure and edits.is_matrix(flags.measure):
        edit["measure"] = "matrix"
    if flags.initial_image and flags.keep_fraction is None:
        edit["keep_fraction"] = 0.5
    settings = single_setting(take_numbers(flags.values)[0])
    return settings | {name: value for name, value in edit.items() if value is not None}


def _numbers(flags: SampleFlags) -> list[float]:
    """Returns the values of --number if there are several."""
    return take_numbers(flags.values)[1]
