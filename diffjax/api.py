"""Python interface of runs: training, samples, denoiser, metrics and sweeps, as of the verbs of the command line."""

import contextlib
import dataclasses
import functools
import inspect
import io
import logging
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from numpy import ndarray
from PIL import Image

from diffjax.conversion.importing import import_run
from diffjax.diffusion.denoiser import Denoised, Denoiser
from diffjax.diffusion.noise import Noise
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.errors import UserError, missing_field, naming_arguments, quiet_libraries, unknown, validate_number
from diffjax.evaluation import evaluations
from diffjax.evaluation.evaluations import References
from diffjax.evaluation.results_store import Entry, ResultsStore, estimates
from diffjax.evaluation.sweep import Sweep, SweepOptions, SweepResult
from diffjax.inference import image_grids
from diffjax.inference.overrides import SETTINGS, SettingsFactory, single_setting
from diffjax.inference.prompts import check_text, sample_prompts
from diffjax.inference.requirements import SAMPLE_FLAGS, check_capabilities
from diffjax.inference.sample_flags import SampleFlags
from diffjax.inference.sample_requests import RunSampler
from diffjax.metrics.resampling import Estimate
from diffjax.models.capabilities import is_diffusion, is_text_conditioned, is_upsampling_stage
from diffjax.models.diffusion.bound_model import BoundModel
from diffjax.models.diffusion.model import with_settings
from diffjax.runs import loading, mirror
from diffjax.runs.checkpoint_files import list_steps
from diffjax.runs.config_files import checked, load_file, with_fields
from diffjax.runs.new_folder import new_folder
from diffjax.runs.workdir import Workdir
from diffjax.training import train as training

_MAX_COUNT = 10_000_000


@contextlib.contextmanager
def public() -> Iterator[None]:
    """Context of each public function: errors name its arguments, and libraries do not report their internals."""
    with naming_arguments(), quiet_libraries():
        yield


@dataclasses.dataclass(frozen=True, repr=False)
class Run(loading.Run):
    """A trained run. `system` is its model, `variables` its averaged parameters, `config` its config."""

    def __repr__(self) -> str:
        return (
            f"Run(system={self.config.system}, data={self.config.data.name}, parameters={self.parameters:,}, "
            f"step={self.step}, path={self.workdir.name})"
        )

    @public()
    def sample(
        self,
        num: int | None = None,
        *,
        labels: int | Sequence[int] | None = None,
        prompts: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        batch_size: int = 100,
        best_of: int | None = None,
        clip: str | os.PathLike | None = None,
        classifier: str | os.PathLike | None = None,
        weak: str | os.PathLike | None = None,
        **settings: Any,
    ) -> UInt8[ndarray, "N H W C"]:
        """Samples images: those of `launch.py sample` with the same flags.

        Args:
          num: number of images, of each prompt for text-conditioned runs; None: 16, or one per label.
          labels: class of all images, or of each; None: the classes in turn.
          prompts: caption or captions, for text-conditioned runs.
          negative_prompt: caption that classifier-free guidance moves away from; None: the null caption.
          seed: seed of the first sample; sample i has seed + i.
          batch_size: samples per batch; does not change the samples.
          best_of: number of samples per prompt, of which the `num` most similar to the prompt are kept.
          clip: run or folder of the CLIP that `best_of` ranks by; None: the one trained with the run.
          classifier, weak: runs that guide.
          settings: sampling settings by flag, such as sampler="ddim", steps=20, guidance=2.0. A mapping sets them per
            stage of a pipeline: steps={"prior": 64, "decoder": 50}. Others are those of the run's config. A list of
            "number" has the number of each image, in turn.

        Returns:
          Images, uint8 in [0, 255]. The images of a prompt are adjacent.

        Raises:
          UserError: an argument that the run does not support.
        """
        numbers = _numbers(settings.get("number"))
        num = _count(len(numbers) if numbers and num is None and labels is None else num, labels)
        captions = _captions(prompts)
        if negative_prompt is not None:
            _check_caption("negative_prompt", negative_prompt)
        first = {"number": numbers[0]} if numbers else {}
        texts = _setting_texts({**settings, **first}, self.sample)
        if numbers:
            texts["number"] = ",".join(map(repr, numbers))
        flags = texts | {
            "label": labels,
            "prompts": prompts,
            "negative_prompt": negative_prompt,
            "best_of": None if best_of is None else _integer("best_of", best_of, 1, _MAX_COUNT),
            "clip": _path(clip),
            "classifier": _path(classifier),
            "weak": _path(weak),
            "num": num,
            "seed": _integer("seed", seed, 0),
            "batch_size": _integer("batch_size", batch_size, 1),
        }
        if clip is not None and best_of is None:
            raise UserError("--clip: requires --best_of; add it")
        sampler = self._sampler(flags)
        self._check_conditions(flags)
        return sampler.sample(sampler.prepare(SampleFlags(flags), captions)).images

    @public()
    def denoiser(
        self,
        *,
        labels: int | Sequence[int] | None = None,
        prompts: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> "RunDenoiser":
        """Returns the denoiser of a diffusion model, with guidance and clipping as in `sample`.

        The conditions are encoded here, once. The denoiser is a pure function of arrays, which jax transforms.

        Args:
          labels: class of all examples, or of each; required for class-conditional runs.
          prompts: caption of all examples, or of each; required for text-conditioned runs.
          settings: "guidance", "guidance_rescale", "guidance_low", "guidance_high", "threshold" and "number", one value
            each, as of `sample`.
            guidance=1 with threshold="none" gives the estimate of the network alone.

        Returns:
          A denoiser as of diffjax.diffusion: maps x_t [B, ...] and its noise level to `Denoised`, with x_0 [B, ...].
          The level is a `Noise` of scalars, or a timestep t in [0, T].

        Raises:
          UserError: the run is not a diffusion model, or an argument that it does not support.
        """
        model, captions = self.system, _captions(prompts)
        if not is_diffusion(model):
            raise UserError(f"{self.workdir.name}: requires a diffusion model (this run: system={self.config.system})")
        for name in settings:
            if name not in _DENOISER_SETTINGS:
                raise unknown("argument of a denoiser", name, ["labels", "prompts", *_DENOISER_SETTINGS])
        self._check_conditions({"label": labels, "prompts": prompts})
        if model.classes and not captions and labels is None:
            raise UserError("labels is missing: the run is conditioned on labels; pass labels=...")
        num = _count(1 if _each(labels) is None else None, labels)
        overrides = single_setting(_setting_texts(settings, self.denoiser))
        sampling_settings = SettingsFactory(model, self.config.sampler)(**overrides)
        conditions = sample_prompts(self, model.classes, num, captions, labels)[0].conditions
        arrays = {name: jnp.asarray(values) for name, values in conditions.items()}
        arrays = with_settings(arrays, sampling_settings, len(conditions["label"]))
        bound: BoundModel = model.bind(self.variables, arrays)
        denoise = bound.guided_denoiser(sampling_settings, arrays)
        return RunDenoiser(repr(self), denoise, bound.process.schedule, bound.shape, max(num, len(captions)))

    def _sampler(self, flags: Mapping[str, Any]) -> RunSampler:
        """Returns the sampler with the models that guide, the same at each call, so that it compiles once."""
        key = flags["classifier"], flags["weak"]
        if key not in self._samplers:
            self._samplers[key] = RunSampler(self, flags)
        return self._samplers[key]

    @functools.cached_property
    def _samplers(self) -> dict[tuple[str | None, str | None], RunSampler]:
        return {}

    def _check_conditions(self, flags: Mapping[str, Any]) -> None:
        """Raises UserError for conditions that the run does not support, or if one that it requires is missing."""
        check_capabilities(flags, self, SAMPLE_FLAGS)
        if is_upsampling_stage(self.system):
            raise UserError(
                f"{self.workdir.name}: this stage is conditioned on an image; load the full pipeline, or use "
                "launch.py sample --image=FILE"
            )
        if is_text_conditioned(self.system) and flags.get("prompts") is None:
            raise UserError("prompts is missing: the run is conditioned on captions; pass prompts=...")

    @public()
    def sweep(
        self,
        *,
        metrics: str | Sequence[str] | None = None,
        num: int = 500,
        seed: int = 0,
        batch_size: int = 100,
        reference: str | os.PathLike | None = None,
        clip: str | os.PathLike | None = None,
        inception: str | os.PathLike | None = None,
        dinov2: str | os.PathLike | None = None,
        features: str | os.PathLike | None = None,
        classifier: str | os.PathLike | None = None,
        weak: str | os.PathLike | None = None,
        store: bool = True,
        recompute: bool = False,
        progress: bool = True,
        **settings: Any,
    ) -> SweepResult:
        """Samples and measures every combination of settings: the cells of `launch.py sweep` with the same flags.

        Args:
          metrics: names of metrics of samples; None: fd_pixels and classifier_accuracy, if the run supports them.
          num: number of samples per cell.
          seed: seed of the first sample; sample i has seed + i.
          batch_size: samples per batch; does not change the samples.
          reference: split or .npz file of real images to compare samples with; None: the training split.
          clip: run or folder of a CLIP, for metrics that require one; None: the one trained with the run.
          inception: weights file of FID's InceptionV3.
          dinov2: folder of a published DINOv2.
          features: run of a classifier, for the metrics of its features.
          classifier, weak: runs that guide.
          store: append each cell to the run's results when it is finished, and do not compute stored cells again.
          recompute: compute cells that are stored too.
          progress: print a progress bar.
          settings: sampling settings by flag, a value or a list of values each: steps=[5, 10], sampler="ddim".

        Returns:
          A row per cell, in the order of the settings.

        Raises:
          UserError: an argument that the run does not support.
        """
        flags = _setting_texts(settings, self.sweep, several=True)
        flags |= {"classifier": _path(classifier), "weak": _path(weak)}
        options = SweepOptions(
            metrics=None if metrics is None else _metric_names(metrics),
            num=_integer("num", num, 2, _MAX_COUNT),
            seed=_integer("seed", seed, 0),
            batch_size=_integer("batch_size", batch_size, 1),
            clip=_path(clip),
            weights={"inception": _path(inception), "dinov2": _path(dinov2), "classifier": _path(features)},
            reference=_path(reference),
            recompute=recompute,
        )
        with _output(progress):
            sweep = Sweep({self.ema_length: self}, flags, options, self._results if store else None)
            entries = list(sweep.compute())
        if store:
            mirror.upload_results()
        _print_warnings(entries)
        return sweep.result()

    @public()
    def evaluate(
        self,
        metrics: str | Sequence[str],
        *,
        num: int | None = None,
        seed: int = 0,
        batch_size: int = 100,
        split: str | None = None,
        reference: str | os.PathLike | None = None,
        clip: str | os.PathLike | None = None,
        inception: str | os.PathLike | None = None,
        dinov2: str | os.PathLike | None = None,
        features: str | os.PathLike | None = None,
        classifier: str | os.PathLike | None = None,
        weak: str | os.PathLike | None = None,
        store: bool = True,
        recompute: bool = False,
        **settings: Any,
    ) -> dict[str, Estimate]:
        """Computes metrics: those of `launch.py evaluate` with the same flags.

        Args:
          metrics: names in evaluation.NAMES.
          num: number of images, the first of the split, or of samples; None: 256 images, 1000 samples.
          seed: seed of the first image or sample.
          batch_size: images per batch; does not change the samples.
          split: split, for metrics of data; None: test, or the rest of the slice in `data.split`.
          reference: split or .npz file of real images to compare samples with; None: the training split.
          clip: run or folder of a CLIP, for metrics that require one; None: the one trained with the run.
          inception: weights file of FID's InceptionV3.
          dinov2: folder of a published DINOv2.
          features: run of a classifier, for the metrics of its features.
          classifier, weak: runs that guide.
          store: append the metrics to the run's results, and do not compute stored ones again.
          recompute: compute metrics that are stored too.
          settings: sampling settings by flag, one value each (steps: several for reconstruction); and decoder, terms,
            ode_steps, exact_trace, samples, template, lpips, masks, strength and resample_steps of `launch.py
            evaluate`.

        Returns:
          The estimates with their standard errors, by name: "fd_pixels"; "nll.bound", "nll.kl" for nll.

        Raises:
          UserError: an argument that the run does not support.
        """
        options = {name: settings.pop(name) for name in evaluations.OPTIONS if name in settings}
        flags = _setting_texts(settings, self.evaluate, several=True)
        flags |= {"classifier": _path(classifier), "weak": _path(weak), "split": split}
        metric_settings = evaluations.make_settings(
            flags
            | {name: _option(name, value) for name, value in options.items() if value is not None}
            | {
                "num": None if num is None else _integer("num", num, 2, _MAX_COUNT),
                "seed": _integer("seed", seed, 0),
                "batch_size": _integer("batch_size", batch_size, 1),
            }
        )
        weights = {"inception": _path(inception), "dinov2": _path(dinov2), "classifier": _path(features)}
        names, references = _metric_names(metrics), References(_path(reference), _path(clip), weights)
        evaluations.check_names(names, references)
        prepared = evaluations.prepare(names, self, metric_settings, flags, references)
        results = self._results if store else None
        entries = [entry for entry, _ in evaluations.compute(prepared, results, recompute=recompute)]
        if store:
            mirror.upload_results()
        _print_warnings(entries)
        return {name: estimate for entry in entries for name, estimate in estimates(entry).items()}

    @property
    def _results(self) -> ResultsStore:
        return ResultsStore(self.workdir.results)


_DENOISER_SETTINGS = ("guidance", "guidance_rescale", "guidance_low", "guidance_high", "threshold", "number")


@dataclasses.dataclass(frozen=True, eq=False)
class RunDenoiser:
    """A denoiser of a run under conditions.

    Attributes:
      run: the run in words.
      denoiser: denoiser with guidance and clipping, bound to the encoded conditions.
      noise_schedule: noise schedule of the run.
      shape: shape of x_t, without the batch.
      num_conditions: number of conditions; 1: for all examples of a batch.
    """

    run: str
    denoiser: Denoiser
    noise_schedule: Schedule
    shape: tuple[int, ...]
    num_conditions: int

    def __repr__(self) -> str:
        return f"RunDenoiser({self.run})"

    def __call__(self, x: Float[Array, "B ..."], noise: Noise | Array | float) -> Denoised:
        """Returns the estimate of x_0 for `x` at one noise level, a `Noise` of scalars or a timestep.

        Raises:
          UserError: `x` has another shape, its number of examples is not that of the conditions, or the timestep is out
            of range.
        """
        if jnp.shape(x)[1:] != self.shape or not jnp.ndim(x):
            expected = ", ".join(map(str, ("B", *self.shape)))
            raise UserError(f"x: has the shape {list(jnp.shape(x))}; it must be [{expected}]")
        if self.num_conditions not in (1, len(x)):
            raise UserError(
                f"x: has {len(x)} examples for the {self.num_conditions} labels or prompts of the denoiser; pass as "
                "many, or make a denoiser with one"
            )
        if isinstance(noise, Noise):
            return self.denoiser(x, noise)
        if isinstance(noise, int | float):
            validate_number("t", noise, low=0, high=self.noise_schedule.timesteps)
        return self.denoiser(x, self.noise_schedule(jnp.asarray(noise)))


@public()
def load(
    workdir: str | os.PathLike,
    checkpoint: int | None = None,
    *,
    ema_length: float | None = None,
    data_dir: str | None = None,
    weights_dtype: str = "float32",
) -> Run:
    """Opens a trained or exported run with its averaged parameters, also while it trains.

    Args:
      workdir: folder of the run, or its URL.
      checkpoint: training step of the checkpoint; None: the newest one.
      ema_length: relative length of the average, which is reconstructed; None: the average of train.ema_decay.
      data_dir: folder of the data set; None: `data.dir` of the run.
      weights_dtype: type of the kernels, "float32" or "bfloat16", which needs half the memory. Layers compute in the
        same types.

    Raises:
      UserError: there is no run or no such checkpoint, or a file of the run is damaged.
    """
    mirror.forget()
    options = {"data_dir": data_dir, "weights_dtype": weights_dtype}
    run = loading.load(workdir, checkpoint, ema_length=ema_length, **options)
    return Run(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)})


@public()
def train(
    config: str | os.PathLike | ConfigDict | None,
    workdir: str | os.PathLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    allow_config_change: bool = False,
    progress: bool = True,
) -> Run:
    """Trains a config, or resumes a run: `launch.py train` with the same config.

    Ctrl-C, or the interruption of a notebook's kernel, saves a checkpoint first; the same call resumes.

    Args:
      config: config file, such as "configs/digits.py", or its ConfigDict; None: that of the run, which resumes.
      workdir: folder of the run, or its URL.
      overrides: values of config fields by dotted name, such as {"train.steps": 500}.
      allow_config_change: resume even if the config changes the results of the run; the change is recorded.
      progress: print messages and a progress bar.

    Returns:
      The trained run.

    Raises:
      UserError: the config or the folder is not valid, or too many steps were not finite.
      KeyboardInterrupt: a signal stopped the training.
    """
    mirror.forget()
    folder = Workdir(workdir)
    if config is None:
        if not folder.config.exists() and not list_steps(folder.checkpoints):
            raise UserError(f"config is missing: {workdir} has no run to resume; pass a config file")
        config = folder.read_config()
    else:
        config = _config(config)
    config = with_fields(config, overrides or {})
    with _output(progress), quiet_libraries(logging.CRITICAL):  # a failed save is one line, not tracebacks
        try:
            _, stopped = training.train(config, folder, allow_config_change=allow_config_change)
        except (AttributeError, KeyError) as error:
            if (user_error := missing_field(error)) is None:
                raise
            raise user_error from error
    if stopped:
        raise KeyboardInterrupt(f"training stopped by signal {stopped} and is saved; the same call resumes")
    return load(workdir)


@public()
def import_weights(
    source: str | os.PathLike,
    workdir: str | os.PathLike,
    config: str | ConfigDict | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Imports published weights as a run: `launch.py import`.

    Args:
      source: folder or file of published weights, or "hub:OWNER/NAME" of the Hugging Face Hub.
      workdir: folder of the run, which must not exist or be empty.
      config: config file of a single file, such as "configs/published/adm.py:64", or its ConfigDict; a folder of
        another library has its own.
      overrides: values of config fields by dotted name.

    Returns:
      The run.

    Raises:
      UserError: the source cannot be read or has an option that is not supported, or the folder is not empty.
    """
    if config is not None:
        config = with_fields(_config(config), overrides or {})
    elif overrides:
        raise UserError("overrides: require config, as a folder of another library has its own config")
    with new_folder(Path(workdir), flag="workdir") as folder:
        import_run(os.fspath(source), folder, config)
    return load(workdir)


@public()
def image_grid(images: UInt8[ndarray, "N H W C"], columns: int | None = None) -> Image.Image:
    """Returns images in rows as one image of Pillow, which notebooks show. Small images are enlarged.

    Args:
      images: uint8 in [0, 255].
      columns: number of images per row; None: an approximately square grid.

    Raises:
      UserError: `images` is another array.
    """
    if getattr(images, "dtype", None) != np.uint8 or np.ndim(images) != 4 or not len(images):
        raise UserError("images: must be a uint8 array [N, H, W, C], such as those of `run.sample`")
    layout = image_grids.Layout(None if columns is None else _integer("columns", columns, 1))
    image = image_grids.grid(images, layout).pixels
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _config(config: Any) -> ConfigDict:
    """Returns the config of a file or a ConfigDict. Raises UserError if it is neither."""
    if isinstance(config, ConfigDict):
        return checked(config)
    if isinstance(config, str | os.PathLike):
        return load_file(os.fspath(config))
    raise UserError(f"config={config!r:.80}: must be a config file or a ConfigDict")


@contextlib.contextmanager
def _output(shown: bool) -> Iterator[None]:
    """Hides standard output and error unless `shown`."""
    if shown:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _integer(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """Returns a whole number. Raises UserError, with the message of the flag, if it is not one in [low, high]."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise UserError(f"--{name}={value}: must be a whole number from {low:,} to {high:,}")
    return number


def _count(num: int | None, labels: int | Sequence[int] | None) -> int:
    """Returns the number of samples. Raises UserError if it is not that of `labels`, or a label is not a number."""
    each = _each(labels)
    for label in each or ([] if labels is None else [labels]):
        _integer("label", label, 0)
    if num is None:
        num = 16 if each is None else len(each)
    num = _integer("num", num, 1, _MAX_COUNT)
    if each is not None and len(each) != num:
        raise UserError(f"--num={num}: there are {len(each)} labels; pass one label per image")
    return num


def _each(labels: Any) -> list[Any] | None:
    """Returns the label of each image; None: one label, or none, for all images."""
    return list(labels) if jnp.ndim(labels) > 0 else None


def _numbers(values: Any) -> list[float]:
    """Returns the numbers of a list; [] for one number or none. Raises UserError for a list of other values."""
    if not isinstance(values, Sequence | ndarray) or isinstance(values, str):
        return []
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise UserError(f"--number={values}: must be a number, or a list of numbers") from None


def _path(path: str | os.PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)


def _metric_names(metrics: str | Sequence[str]) -> list[str]:
    """Returns the names of metrics. Raises UserError for an empty list."""
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    if not names:
        raise UserError("--metrics: there are no metrics; pass at least one")
    return names


def _option(name: str, value: Any) -> Any:
    """Returns the value of an option of `evaluate`. Raises UserError if it must be a whole number and is not."""
    low = evaluations.OPTIONS[name]
    if low is not None:
        return _integer(name, value, low, _MAX_COUNT)
    return str(value) if isinstance(value, str | int | float) else ",".join(map(str, value))


def _print_warnings(entries: Sequence[Entry]) -> None:
    for text in dict.fromkeys(text for entry in entries for text in entry["warnings"]):
        print(f"warning: {text}", file=sys.stderr)


def _captions(prompts: str | Sequence[str] | None) -> list[str]:
    """Returns the captions of samples. Raises UserError if one is blank or has control characters."""
    if prompts is None:
        return []
    captions = [prompts] if isinstance(prompts, str) else list(prompts)
    for caption in captions:
        _check_caption("prompt", caption)
    if not captions:
        raise UserError("--prompts: there are no prompts; pass at least one")
    return captions


def _check_caption(flag: str, caption: Any) -> None:
    """Raises UserError if a caption is not one text, is blank, or has control characters."""
    if not isinstance(caption, str) or not caption.strip():
        raise UserError(f"--{flag}={caption}: must be one text that is not blank; pass a caption")
    check_text(f"--{flag}", caption)


def _setting_texts(
    settings: Mapping[str, Any], function: Callable[..., Any], *, several: bool = False
) -> dict[str, str]:
    """Returns sampling settings as the texts of their flags; those of value None are left out.

    Args:
      function: the function that they are arguments of, for the error of an unknown one.
      several: whether a list is several values.

    Raises:
      UserError: an unknown setting, or an empty value.
    """
    texts = {}
    for name, value in settings.items():
        if name not in SETTINGS:
            parameters = inspect.signature(function).parameters.values()
            arguments = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
            raise unknown("argument", name, [*arguments, *SETTINGS])
        if value is None:
            continue
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if is_list and not several:
            raise UserError(f"--{name}={value}: must be one value; a sweep takes several")
        values = list(value) if is_list else [value]
        texts[name] = ",".join(map(_setting_text, values))
        if not texts[name].strip():
            raise UserError(f"--{name}={value}: the value is empty; set a value, or omit it")
    return texts


def _setting_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{stage}:{one}" for stage, one in value.items())
    return str(value)
