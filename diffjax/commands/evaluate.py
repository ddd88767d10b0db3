"""Measure a trained run: the likelihood of data, reconstruction, a classifier's accuracy.

  python launch.py evaluate --workdir=runs/digits --metrics=nll [--num=1000 --terms=100 --ode_steps=100]
  python launch.py evaluate --workdir=runs/digits --metrics=reconstruction --steps=10,20,50,100,200,500,1000
  python launch.py evaluate --workdir=runs/classifier --metrics=accuracy

nll, bits/dim of --split: the variational bound on the chain of --steps (default: all), with L_T, the sum of the KL
terms and L_0, and its breakdown over t; the likelihood by the probability-flow ODE, its trace by Hutchinson's
estimator, and exactly for the first --exact_trace images, by as many directional derivatives as an image has values.
With --terms=K, K terms of the bound are drawn a batch, more of them near the image, and weighted. A conditional model
is told the labels.

  Of a VAE: the ELBO and its terms, and the importance-weighted bound of --samples draws. Of a prior: of the codes.

reconstruction: mean squared error a value, images in [0, 1]; of a diffusion model by encoding with DDIM and decoding in
as many steps (Song et al. 2021, table 2). Of an autoencoder also PSNR, SSIM and the use of its codes.

accuracy: of a classifier of noised images, at nine times.

Every figure has its standard error over the images. Writes results/METRIC.json, and a figure beside it.
"""

import json
from collections.abc import Callable

import numpy as np
from absl import flags as absl_flags

from diffjax.commands import evaluate_autoencoder, evaluate_classifier, evaluate_diffusion
from diffjax.commands.flags import Arguments, Flags, define_sampling, define_workdir, required
from diffjax.commands.settings import texts
from diffjax.errors import UserError, unknown
from diffjax.workdir import Run, load, open_source

METRICS = {  # how each is measured of systems that have this: see typing.System
    "nll": {"model": evaluate_diffusion.nll, "likelihood": evaluate_autoencoder.nll},
    "reconstruction": {"model": evaluate_diffusion.reconstruction, "codec": evaluate_autoencoder.reconstruction},
    "accuracy": {"classify": evaluate_classifier.accuracy},
}


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags)
    for name, default, text in (
        ("metrics", None, f"{' | '.join(METRICS)}; several, separated by commas"),
        ("split", "test", "of the data set"),
        ("steps", "", "numbers of steps for reconstruction, one for the bound; separated by commas"),
        ("grid", None, "times that the bound, the ODE or reconstruction visit"),
    ):
        absl_flags.DEFINE_string(name, default, text, flag_values=flags)
    for name, default, text in (
        ("num", 256, "images, the first of the split"),
        ("ode_steps", 100, "steps of the ODE's integration"),
    ):
        absl_flags.DEFINE_integer(name, default, text, lower_bound=2, flag_values=flags)
    absl_flags.DEFINE_integer("samples", 64, "draws of a VAE's importance-weighted bound", 1, flag_values=flags)
    absl_flags.DEFINE_integer("terms", 0, "terms of the bound computed a batch, 0: all", 0, flag_values=flags)
    absl_flags.DEFINE_integer(
        "exact_trace", None, "images whose trace is exact too (default: 8 of at most 256 values)", 0, flag_values=flags
    )


def run(arguments: Arguments) -> int:
    names = texts(required(arguments, "metrics"))
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    trained = load(required(arguments, "workdir"), arguments.checkpoint)
    measures = {name: _measure(name, trained) for name in names}
    images, labels = _data(arguments, trained)
    for name, measure in measures.items():
        result = measure(arguments, trained, images, labels)
        result |= {
            "workdir": str(trained.workdir.path),
            "checkpoint": trained.step,
            "data": trained.config.data.name,
            "split": arguments.split,
            "images": len(images),
            "seed": arguments.seed,
        }
        path = trained.workdir.results / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(path)
    return 0


def _measure(name: str, trained: Run) -> Callable[..., dict]:
    """Prints a table and returns what is to be kept of it. Raises UserError where the run has no such measure."""
    for needed, measure in METRICS[name].items():
        if getattr(trained.system, needed) is not None:
            return measure
    raise UserError(f"--metrics={name}: {trained.workdir.path} is a run of system={trained.config.system}, without one")


def _data(arguments: Arguments, trained: Run) -> tuple[np.ndarray, np.ndarray]:
    """The first images of the split, uint8, and their labels."""
    source = open_source(trained.config, arguments.split)
    examples = source.__getitems__(range(min(len(source), arguments.num)))
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples], np.int32)
