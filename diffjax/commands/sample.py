"""Draw samples from a trained run, as a picture or as arrays.

  python launch.py sample --workdir=runs/digits --out=samples.png --num=100 [--label=3]
                          [--sampler=ddim --steps=20 --eta=0 --guidance=2 --grid=trailing]

Classes take turns unless --label is given. What is not given is as in the run's config. --out=X.png writes a grid,
--out=X.npz the arrays images (uint8 [N, H, W, C]), labels (-1: none) and seeds.
"""

from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from tqdm import tqdm

from diffjax import pictures
from diffjax.choice import choices
from diffjax.commands.flags import Arguments, Flags, define_sampling, define_workdir, eta_settings, required
from diffjax.diffusion import grids, samplers
from diffjax.errors import UserError
from diffjax.generate import Generator, balanced_labels
from diffjax.workdir import load


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags)
    for name, text in {
        "out": "file to write: .png for a grid, .npz for arrays",
        "sampler": " | ".join(choices(samplers)),
        "eta": "of ddim: 0 deterministic, 1 ancestral, hat for DDPM's larger variance",
        "grid": f"times to visit: {' | '.join(choices(grids))}",
    }.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)
    absl_flags.DEFINE_integer("num", 16, "number of samples", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer("label", None, "class of every sample, counted from 0", flag_values=flags)
    absl_flags.DEFINE_integer("steps", None, "steps of the sampler", flag_values=flags)
    absl_flags.DEFINE_float("guidance", None, "scale s of classifier-free guidance; 1 is none", flag_values=flags)


def run(arguments: Arguments) -> int:
    out = Path(required(arguments, "out"))
    if out.suffix not in (".png", ".npz"):
        raise UserError(f"--out={out}: the name must end in .png (a grid) or .npz (arrays)")
    trained = load(required(arguments, "workdir"), arguments.checkpoint)
    classes = trained.system.classes
    labels = _labels(arguments, classes)
    seeds = arguments.seed + np.arange(arguments.num)
    plan = trained.system.plan(trained.config.sampler, **overrides(arguments))
    generator = Generator(trained.system, batch_size=min(arguments.batch_size, arguments.num))
    with tqdm(total=arguments.num, unit="image") as bar:
        images = generator(trained.variables, seeds, {"label": labels}, plan, progress=bar.update)

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        columns = pictures.class_columns(classes, arguments.num) if arguments.label is None else None
        pictures.save(out, pictures.grid(images, columns))
    else:
        np.savez(out, images=images, labels=labels if classes else np.full_like(labels, -1), seeds=seeds)
    print(f"{len(images)} samples of step {trained.step} in {out}")
    return 0


def overrides(arguments: Arguments) -> dict:
    """The sampler settings that the flags give."""
    settings = {"name": arguments.sampler} | {n: getattr(arguments, n) for n in ("steps", "guidance", "grid")}
    if arguments.eta is not None:
        settings |= eta_settings(arguments.eta)
    return {name: value for name, value in settings.items() if value is not None}


def _labels(arguments: Arguments, classes: int) -> np.ndarray:
    if arguments.label is None:
        return balanced_labels(arguments.num, classes)
    if not 0 <= arguments.label < classes:
        limit = f"has the classes 0 to {classes - 1}" if classes else "was trained without labels"
        raise UserError(f"--label={arguments.label}: this run {limit}")
    return np.full(arguments.num, arguments.label, np.int32)
