"""Evaluate a trained run: metrics of its samples, its reconstructions, likelihoods, and classifiers.

  python launch.py evaluate --workdir=runs/digits --metrics=fd_effnet_lite0,kd_effnet_lite0 --num=5000
  python launch.py evaluate --workdir=runs/cifar10 --metrics=fid,sfid,is,kid --inception=FILE --num=50000 --steps=50
  python launch.py evaluate --workdir=runs/digits --metrics=nll [--num=1000 --terms=100 --ode_steps=100]
  python launch.py evaluate --workdir=runs/digits --metrics=reconstruction --steps=10,20,50,100,200,500,1000
  python launch.py evaluate --workdir=runs/classifier --metrics=accuracy

Metrics of samples, against the real images of --reference. The sampling settings are those of the config and the flags:
  fid, kid, is, sfid, precision_recall_inception   features of FID's Inception; requires --inception
  fd_effnet_lite0, kd_..., precision_recall_...    features of EfficientNet-Lite0, without downloads; this is not FID
  fd_pixels, kd_pixels, precision_recall_pixels    pixels averaged to 8x8, for tiny images
  classifier_accuracy, cas                 fraction of samples that a classifier of real images assigns to their class;
                                           and of real images, by a classifier of samples (support vector machines)
  clip_score, r_precision, cmmd            with --clip: 100 times the cosine of image and caption; fraction of images
                                           nearer to their caption than to 99 others; distance to the real images
  caption_accuracy                         fraction of images of shapes that show their caption, by shape detection
precision_recall_* are precision, recall, density and coverage. Frechet distances decrease with --num, so their
extrapolation to infinitely many samples is reported too. The prefix r (recon_fd_effnet_lite0, recon_fid) compares an
autoencoder's reconstructions of --split with the originals.

nll, in bits per dimension of --split. For diffusion models: the variational bound over --steps (default: all), with
L_T, the sum of the KL terms, L_0, and the terms by t; the likelihood by the probability-flow ODE with Hutchinson's
trace estimator, and with the exact trace for the first --exact_trace images (one directional derivative per value).
--decoder=ddpm computes L_0 as the code of DDPM, Improved DDPM and ADM, for comparison with published values.
--terms=K samples K terms of the bound per batch, most of them at low noise levels, and weights them. Conditional models
are conditioned on the labels. For VAEs: the ELBO, its terms, and the importance-weighted bound of --samples samples.
For VQ-VAEs: with a uniform distribution of tokens. For priors: of the tokens.

reconstruction: mean squared error per value, for images in [0, 1]. Diffusion models encode and decode by DDIM, with the
same number of steps (Song et al. 2021, table 2). For autoencoders also PSNR, SSIM, the usage of the codebook, and LPIPS
with --lpips.

retrieval, zero_shot, composition, for CLIPs: recall@1, 5 and 10 among --num images and captions of --split; accuracy of
the most similar class name, in the sentence of --template; fraction of images of shapes nearer to their caption than to
all captions with a wrong colour, shape, size, order of two objects, or binding (attributes of two objects exchanged).

accuracy, for classifiers of noised images: at nine timesteps.

Values have standard errors. Writes results/METRIC.json with everything that the value depends on, and example images.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags as absl_flags
from tqdm import tqdm

from diffjax import evaluation, io
from diffjax.cli.flags import MAX_COUNT, Arguments, Flags, check_writable, define_sampling, define_workdir, required
from diffjax.cli.settings import batch_size, define_settings
from diffjax.errors import UserError
from diffjax.evaluation import metrics, provenance, samples
from diffjax.evaluation.samples import Measurer
from diffjax.evaluation.settings import Examples, Settings
from diffjax.inference import image_grids, prompts
from diffjax.inference.guidance_models import attach_guidance_models
from diffjax.inference.overrides import SettingsFactory, setting_values, single_setting
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.parsing import texts
from diffjax.runs.datasets import dataset_info
from diffjax.runs.loading import Run, load

_MAX_IMAGES = 100  # images of an example grid
_Work = Callable[["_Results"], None]


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags)
    define_settings(flags, several=False)
    for name, default, text in (
        ("metrics", None, f"{' | '.join(evaluation.NAMES)}; several, separated by commas"),
        ("split", "test", "split of the data set, for metrics of data"),
        ("reference", None, "split to compare samples with (default: the training split)"),
        ("clip", None, "run or folder of a CLIP (default: the CLIP trained with the run)"),
        ("decoder", "exact", "L_0 of a diffusion model's bound: exact | ddpm (as in DDPM's code)"),
        ("template", "a {}", "sentence with {} for the class name, for zero_shot"),
        ("inception", None, "weights file of FID's InceptionV3"),
        ("lpips", None, "weights files of LPIPS, BACKBONE,LINEAR"),
    ):
        absl_flags.DEFINE_string(name, default, text, flag_values=flags)
    for name, default, low, text in (
        ("num", None, 2, "number of images, the first of the split (default 256), or of samples (default 1000)"),
        ("ode_steps", 100, 0, "number of steps of the ODE solver, 0: bound only"),
        ("samples", 64, 1, "number of samples of a VAE's importance-weighted bound"),
        ("terms", 0, 0, "number of terms of the bound per batch, 0: all"),
        ("exact_trace", None, 0, "number of images with an exact trace (default: 8 if they have at most 256 values)"),
    ):
        absl_flags.DEFINE_integer(name, default, text, low, MAX_COUNT, flag_values=flags)


def run(arguments: Arguments) -> int:
    names = texts(required(arguments, "metrics"))
    for name in names:
        evaluation.check_name(name)
    compared = [evaluation.OF_RECONSTRUCTIONS[name] for name in names if name in evaluation.OF_RECONSTRUCTIONS]
    samples.check_names([*compared, *(name for name in names if name in metrics.NAMES)], arguments.inception)
    trained = load(required(arguments, "workdir"), arguments.checkpoint, ema_length=arguments.ema_length)
    settings = _settings(arguments)
    for name in names:
        check_writable("workdir", trained.workdir.results / f"{name}.json")
        evaluation.check(name, trained, settings)
    of_data = [name for name in names if name in evaluation.OF_DATA]
    of_reconstructions = [name for name in names if name in evaluation.OF_RECONSTRUCTIONS]
    of_samples = [name for name in names if name in metrics.NAMES]
    # Errors are raised before anything is computed, and before other models are loaded.
    examples = evaluation.examples(settings, trained) if of_data or of_reconstructions else None
    if of_reconstructions and examples:
        options = {"split": settings.split, "inception": arguments.inception, "clip": arguments.clip}
        samples.check(compared, trained, len(examples.images), **options, extrapolate=True)
    if of_samples and not arguments.classifier:  # a classifier can add classes
        _check_samples(arguments, settings, trained, of_samples, trained.system.classes)
    samples_of = _samples(arguments, settings, trained, of_samples)
    reconstructions_of = _reconstructions(arguments, settings, trained, of_reconstructions, examples)
    results = _Results(trained)
    for name in of_data:
        assert examples is not None
        result = evaluation.evaluate(name, trained, settings, examples)
        print(result.text)
        results.save(name, {**result.values, **result.provenance})
        for file, plot in result.plots.items():
            results.write(file, plot)
    for compare in (reconstructions_of, samples_of):
        if compare:
            compare(results)
    return results.exit_code()


class _Results:
    """Files in the run's results folder. A file that cannot be written is printed, and does not stop other metrics."""

    def __init__(self, trained: Run):
        self._folder, self._failed = trained.workdir.results, []
        self._folder.mkdir(exist_ok=True)

    def save(self, name: str, result: dict) -> None:
        """Writes NAME.json."""
        self.write(f"{name}.json", lambda path: io.write_json(path, result))

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        path = self._folder / name
        try:
            write(path)
        except OSError as error:
            self._failed.append(str(path))
            print(f"warning: {path}: cannot be written ({error.strerror or error})", file=sys.stderr)
        else:
            print(path)

    def exit_code(self) -> int:
        """Returns 0; or 2, with one line on standard error, if a file could not be written."""
        if not self._failed:
            return 0
        print(f"error: {', '.join(self._failed)}: cannot be written; free space and run this again", file=sys.stderr)
        return 2


def _settings(arguments: Arguments) -> Settings:
    steps = tuple(value["steps"] for value in setting_values("steps", arguments.steps)) if arguments.steps else ()
    names = ("seed", "batch_size", "split", "num", "grid", "terms", "ode_steps", "exact_trace", "template", "decoder")
    files = tuple(texts(arguments.lpips or ""))
    if len(files) not in (0, 2):
        raise UserError(f"--lpips={arguments.lpips}: must be two files, BACKBONE,LINEAR")
    options = {name: getattr(arguments, name) for name in names}
    return Settings(**options, steps=steps, draws=arguments.samples, lpips=files)


def _check_samples(arguments: Arguments, settings: Settings, trained: Run, names: list[str], classes: int) -> None:
    """Raises UserError for a metric that is not supported for the samples; loads nothing."""
    single_setting(arguments.as_dict())
    options = {"split": arguments.reference, "inception": arguments.inception, "clip": arguments.clip}
    samples.check(names, trained, settings.count(1000), classes=classes, **options, extrapolate=True)


def _samples(arguments: Arguments, settings: Settings, trained: Run, names: list[str]) -> _Work | None:
    """Returns a function that samples and compares with real images; None without metrics of samples."""
    if not names:
        return None
    count, overrides = settings.count(1000), single_setting(arguments.as_dict())
    model, variables = attach_guidance_models(trained, arguments.as_dict())
    _check_samples(arguments, settings, trained, names, model.classes)
    sampling_settings = SettingsFactory(model, trained.config.sampler)(**overrides)
    conditions, captions = prompts.default_prompts(trained, count, split=settings.split, classes=model.classes)
    measure = _measurer(arguments, trained, names, arguments.reference, model.classes)

    def work(results: _Results) -> None:
        seeds = settings.seed + np.arange(count)
        runner = SampleRunner(model, batch_size=batch_size(arguments, count))
        with tqdm(total=count, unit="image") as bar:
            images = runner(variables, seeds, conditions, sampling_settings, progress=bar.update)
        inputs = {
            "sampler": {**trained.config.sampler.to_dict(), **overrides},
            "samples": count,
            "not_finite": runner.not_finite,
            "seed": settings.seed,
            "guides": {name: getattr(arguments, name) for name in ("classifier", "weak") if getattr(arguments, name)},
        }
        if captions:
            inputs["prompts"] = f"{len(set(captions))} captions of {settings.split}"
        print(f"{count} samples, seeds from {settings.seed}, checkpoint {trained.step}")
        generated = images, conditions["label"], captions
        _compare(trained, names, measure, generated, inputs, results, "samples.png", measure.baselines(settings.split))

    return work


def _reconstructions(
    arguments: Arguments, settings: Settings, trained: Run, names: list[str], examples: Examples | None
) -> _Work | None:
    """Returns a function that compares reconstructions with the originals; None without metrics of reconstructions."""
    if not names or examples is None:
        return None
    compared = [evaluation.OF_RECONSTRUCTIONS[name] for name in names]
    measure = _measurer(arguments, trained, compared, settings.split, 0)

    def work(results: _Results) -> None:
        runner = SampleRunner(trained.system, batch_size=settings.batch_size)
        images = runner.reconstruct(trained.variables, examples.images)
        print(f"{len(images)} reconstructions of {settings.split}, checkpoint {trained.step}")
        inputs = {"reconstructions": len(images)}
        _compare(trained, names, measure, (images, examples.labels), inputs, results, "reconstructions.png", {})

    return work


def _measurer(arguments: Arguments, trained: Run, names: list[str], split: str | None, classes: int) -> Measurer:
    return Measurer(
        names,
        trained,
        split=split,
        classes=classes,
        inception=arguments.inception,
        clip=arguments.clip,
        batch_size=arguments.batch_size,
        with_errors=True,
        extrapolate=True,
        seed=arguments.seed,
    )


def _compare(
    trained: Run,
    names: list[str],
    measure: Measurer,
    generated: tuple,
    inputs: dict[str, Any],
    results: _Results,
    grid: str,
    baselines: dict[str, dict],
) -> None:
    """Prints and writes the metrics of generated images, with what they depend on; writes a grid of the images.

    Args:
      generated: arguments of `measure`: images, their labels, and their captions if they have any.
      inputs: what the images depend on, for the result files.
      grid: file name of the grid.
      baselines: values of real images, by column.
    """
    images, estimates = generated[0], measure(*generated)
    reference = measure.provenance
    for text in measure.warnings:
        print(f"warning: {text}", file=sys.stderr)
    print(f"  against {reference['images']} images of {reference['data']}:{reference['split']}")
    for name, estimate in estimates.items():
        text = metrics.estimate_text(name, estimate, len(images), baselines.get(name))
        print(f"  {measure.columns[name].heading:36} {text}")
    shared = {**provenance.of_run(trained), **inputs, "reference": reference, "warnings": measure.warnings}
    for name in names:
        columns = metrics.columns_of(evaluation.OF_RECONSTRUCTIONS.get(name, name))
        values = {c: metrics.result_entry(c, estimates[c], baselines.get(c)) for c in columns if c in estimates}
        results.save(name, {"figures": values, **shared})
    class_names = dataset_info(trained.config).class_names
    layout = image_grids.class_layout(trained.system.classes, min(_MAX_IMAGES, len(images)), class_names)
    results.write(grid, lambda path: image_grids.save(path, image_grids.grid(images[:_MAX_IMAGES], layout)))
