"""Measure a trained run: its samples, its reconstructions, the likelihood of data, a classifier's accuracy.

  python launch.py evaluate --workdir=runs/digits --metrics=fd_effnet_lite0,manifold_effnet_lite0 --num=5000
  python launch.py evaluate --workdir=runs/cifar10 --metrics=fid,sfid,is,kid --inception=FILE --num=50000 --steps=50
  python launch.py evaluate --workdir=runs/digits --metrics=nll [--num=1000 --terms=100 --ode_steps=100]
  python launch.py evaluate --workdir=runs/digits --metrics=reconstruction --steps=10,20,50,100,200,500,1000
  python launch.py evaluate --workdir=runs/classifier --metrics=accuracy

Of samples, drawn as the config's sampler section and the flags say, against the real images of --reference:
  fid, kid, is, sfid, manifold_inception   in FID's Inception, whose weights --inception names
  fd_effnet_lite0, kd_..., manifold_...    the same in EfficientNet-Lite0, with nothing to download: never called FID
  fd_pixels, kd_pixels, manifold_pixels    on pixels averaged to 8x8, for tiny images
  recognised, cas                          share of samples taken for their class by a classifier of real images; and
                                           of real images, by a classifier of samples (both support vector machines)
  clip_score, r_precision, cmmd            in --clip: 100 times the cosine of picture and caption; share of pictures
                                           nearer to their caption than to 99 others; distance to the real images
  captions                                 share of pictures of shapes that show what the caption says, read back
manifold is precision, recall, density and coverage. Frechet distances fall with --num: they come with the value
extrapolated to infinitely many samples. An r before a name (rfd_effnet_lite0, rfid) measures an autoencoder's
reconstructions of --split against the originals.

nll, bits/dim of --split: the variational bound on the chain of --steps (default: all), with L_T, the sum of the KL
terms and L_0, and its breakdown over t; the likelihood by the probability-flow ODE, its trace by Hutchinson's
estimator, and exactly for the first --exact_trace images, by as many directional derivatives as an image has values.
--decoder=ddpm computes L_0 as the codes of DDPM, Improved DDPM and ADM do, for comparison with their published values.
With --terms=K, K terms of the bound are drawn a batch, more of them near the image, and weighted. A conditional model
is told the labels. Of a VAE: the ELBO and its terms, and the importance-weighted bound of --samples draws. Of a VQ-VAE:
with codes equally likely. Of a prior: of the codes.

reconstruction: mean squared error a value, images in [0, 1]; of a diffusion model by encoding with DDIM and decoding in
as many steps (Song et al. 2021, table 2). Of an autoencoder also PSNR, SSIM, the use of its codes, and LPIPS where
--lpips names its two files of weights.

retrieval, zero_shot, composition: of a CLIP, recall@1, 5 and 10 among --num pictures and captions of --split; share of
pictures nearest to the sentence that --template makes of their class's name; share of pictures of shapes nearer to
their caption than to all with a wrong colour, shape, size, order of two objects, or binding (one of the first three
exchanged between them).

accuracy: of a classifier of noised images, at nine times.

Figures have standard errors. Writes results/METRIC.json with all that the figure depends on, and pictures beside it.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from tqdm import tqdm

from diffjax import evaluation, io
from diffjax.cli.flags import MOST, Arguments, Flags, check_writable, define_sampling, define_workdir, required
from diffjax.cli.settings import batch_size, define_settings, one_cell, texts, values, with_guides
from diffjax.errors import UserError
from diffjax.evaluation import metrics, provenance, samples
from diffjax.evaluation.samples import Measurer
from diffjax.evaluation.settings import Examples, Settings
from diffjax.inference import image_grids, prompts
from diffjax.inference.sampler_runner import Generator
from diffjax.runs.loading import Run, load

_SHOWN = 100  # images of a sheet
_Work = Callable[["_Results"], None]


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags)
    define_settings(flags, several=False)
    for name, default, text in (
        ("metrics", None, f"{' | '.join(evaluation.NAMES)}; several, separated by commas"),
        ("split", "test", "of the data set, for metrics of data"),
        ("reference", None, "split that samples are compared with (default: the one trained on)"),
        ("clip", None, "run or folder of a CLIP (default: the one trained with the run)"),
        ("decoder", "exact", "convention of L_0 in a diffusion model's bound, exact | ddpm (DDPM's code)"),
        ("template", "a {}", "sentence of a class's name, for zero_shot"),
        ("inception", None, "file of the weights of FID's InceptionV3"),
        ("lpips", None, "files of the weights of LPIPS, BACKBONE,LINEAR"),
    ):
        absl_flags.DEFINE_string(name, default, text, flag_values=flags)
    for name, default, low, text in (
        ("num", None, 2, "images, the first of the split (default 256), or samples (default 1000)"),
        ("ode_steps", 100, 0, "steps of the ODE's integration, 0: only the bound"),
        ("samples", 64, 1, "draws of a VAE's importance-weighted bound"),
        ("terms", 0, 0, "terms of the bound computed a batch, 0: all"),
        ("exact_trace", None, 0, "images whose trace is exact too (default: 8 of at most 256 values)"),
    ):
        absl_flags.DEFINE_integer(name, default, text, low, MOST, flag_values=flags)


def run(arguments: Arguments) -> int:
    names = texts(required(arguments, "metrics"))
    for name in names:
        evaluation.check_name(name)
    compared = [evaluation.OF_RECONSTRUCTIONS[name] for name in names if name in evaluation.OF_RECONSTRUCTIONS]
    samples.check_names([*compared, *(name for name in names if name in metrics.NAMES)], arguments.inception)
    trained = load(required(arguments, "workdir"), arguments.checkpoint)
    settings = _settings(arguments)
    for name in names:
        check_writable("workdir", trained.workdir.results / f"{name}.json")
        evaluation.check(name, trained, settings)
    of_data = [name for name in names if name in evaluation.OF_DATA]
    of_reconstructions = [name for name in names if name in evaluation.OF_RECONSTRUCTIONS]
    of_samples = [name for name in names if name in metrics.NAMES]
    # Whatever can be refused is refused before anything is computed, and before what is not needed is loaded.
    examples = evaluation.examples(settings, trained) if of_data or of_reconstructions else None
    if of_reconstructions:
        needed = {"split": settings.split, "inception": arguments.inception, "clip": arguments.clip}
        samples.check(compared, trained, len(examples.images), **needed, thorough=True)
    if of_samples and not arguments.classifier:  # which may bring classes
        _check_samples(arguments, settings, trained, of_samples, trained.system.classes)
    samples_of = _samples(arguments, settings, trained, of_samples)
    reconstructions_of = _reconstructions(arguments, settings, trained, of_reconstructions, examples)
    results = _Results(trained)
    for name in of_data:
        found = evaluation.of_data(name, trained)(settings, trained, examples)
        told = {"split": settings.split, "images": len(examples.images), "seed": settings.seed}
        results.keep(name, {**found, **provenance.of_run(trained), **told})
    for compare in (reconstructions_of, samples_of):
        if compare:
            compare(results)
    return results.exit_code()


class _Results:
    """Files in the run's folder of results. What cannot be written is printed, and does not stop other metrics."""

    def __init__(self, trained: Run):
        self._folder, self._failed = trained.workdir.results, []
        self._folder.mkdir(exist_ok=True)

    def keep(self, name: str, result: dict) -> None:
        """Writes NAME.json."""
        self.write(f"{name}.json", lambda path: io.write_json(path, result))

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        path = self._folder / name
        try:
            write(path)
        except OSError as error:
            self._failed.append(str(path))
            print(f"warning: {path} cannot be written ({error.strerror or error})", file=sys.stderr)
        else:
            print(path)

    def exit_code(self) -> int:
        """0, or 2 and one line on standard error where a file is missing."""
        if not self._failed:
            return 0
        print(f"error: not written: {', '.join(self._failed)}; free some space and run this again", file=sys.stderr)
        return 2


def _settings(arguments: Arguments) -> Settings:
    steps = tuple(value["steps"] for value in values(arguments, "steps")) if arguments.steps else ()
    names = ("seed", "batch_size", "split", "num", "grid", "terms", "ode_steps", "exact_trace", "template", "decoder")
    files = tuple(texts(arguments.lpips or ""))
    if len(files) not in (0, 2):
        raise UserError(f"--lpips={arguments.lpips}: name two files, BACKBONE,LINEAR")
    given = {name: getattr(arguments, name) for name in names}
    return Settings(**given, steps=steps, draws=arguments.samples, lpips=files)


def _check_samples(arguments: Arguments, settings: Settings, trained: Run, names: list[str], classes: int) -> None:
    """Raises UserError for a metric of samples that cannot be computed; loads nothing."""
    one_cell(arguments)
    needed = {"split": arguments.reference, "inception": arguments.inception, "clip": arguments.clip}
    samples.check(names, trained, settings.count(1000), classes=classes, **needed, thorough=True)


def _samples(arguments: Arguments, settings: Settings, trained: Run, names: list[str]) -> _Work | None:
    """Returns what draws samples and compares them with real images; None without metrics of samples."""
    if not names:
        return None
    count, chosen = settings.count(1000), one_cell(arguments)
    system, variables = with_guides(arguments, trained)
    _check_samples(arguments, settings, trained, names, system.classes)
    plan = system.plan(trained.config.sampler, **chosen)
    asked = prompts.of_run(trained, count, split=settings.split, classes=system.classes)
    measure = _measurer(arguments, trained, names, arguments.reference, system.classes)

    def work(results: _Results) -> None:
        seeds = settings.seed + np.arange(count)
        generator = Generator(system, batch_size=batch_size(arguments, count))
        with tqdm(total=count, unit="image") as bar:
            images = generator(variables, seeds, asked.condition, plan, progress=bar.update)
        told = {
            "sampler": {**trained.config.sampler.to_dict(), **chosen},
            "samples": count,
            "not_finite": generator.not_finite,
            "seed": settings.seed,
            "guides": {name: getattr(arguments, name) for name in ("classifier", "weak") if getattr(arguments, name)},
        }
        if asked.captions:
            told["prompts"] = f"{len(set(asked.captions))} captions of {settings.split}"
        print(f"{count} samples, seeds from {settings.seed}, checkpoint {trained.step}")
        drawn = images, asked.condition["label"], asked.captions
        _compare(trained, names, measure, drawn, told, results, "samples.png", measure.baselines(settings.split))

    return work


def _reconstructions(
    arguments: Arguments, settings: Settings, trained: Run, names: list[str], examples: Examples | None
) -> _Work | None:
    """Returns what compares an autoencoder's reconstructions with the originals; None without metrics of them."""
    if not names:
        return None
    compared = [evaluation.OF_RECONSTRUCTIONS[name] for name in names]
    measure = _measurer(arguments, trained, compared, settings.split, 0)

    def work(results: _Results) -> None:
        generator = Generator(trained.system, batch_size=settings.batch_size)
        back = generator.reconstruct(trained.variables, examples.images)
        print(f"{len(back)} reconstructions of {settings.split}, checkpoint {trained.step}")
        told = {"reconstructions": len(back)}
        _compare(trained, names, measure, (back, examples.labels), told, results, "reconstructions.png", {})

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
        thorough=True,
        seed=arguments.seed,
    )


def _compare(
    trained: Run,
    names: list[str],
    measure: Measurer,
    drawn: tuple,
    told: dict,
    results: _Results,
    picture: str,
    baselines: dict[str, dict],
) -> None:
    """Prints the figures of images, writes them with all they depend on, and shows some of the images."""
    images, found = drawn[0], measure(*drawn)
    reference = measure.provenance
    print(f"  against {reference['images']} images of {reference['data']}:{reference['split']}")
    for name, estimate in found.items():
        print(f"  {measure.columns[name].heading:26} {metrics.text(name, estimate, len(images), baselines.get(name))}")
    shared = {**provenance.of_run(trained), **told, "reference": reference, "warnings": measure.warnings}
    for name in names:
        own = metrics.columns_of(evaluation.OF_RECONSTRUCTIONS.get(name, name))
        kept = {c: metrics.figure(c, found[c], baselines.get(c)) for c in own if c in found}
        results.keep(name, {"figures": kept, **shared})
    columns = image_grids.class_columns(trained.system.classes, min(_SHOWN, len(images)))
    results.write(picture, lambda path: image_grids.save(path, image_grids.grid(images[:_SHOWN], columns)))
