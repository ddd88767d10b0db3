"""Draw samples from a trained run, as a picture or as arrays.

  python launch.py sample --workdir=runs/digits --out=samples.png --num=100 [--label=3]
                          [--sampler=ddim --steps=20 --eta=0 --guidance=2 --grid=trailing]

Classes take turns unless --label is given. What is not given is as in the run's config. --out=X.png writes a grid,
--out=X.npz the arrays images (uint8 [N, H, W, C]), labels (-1: none) and seeds.

  --image=FILE --strength=0.5       samples that start from the image, noised for half of the process (SDEdit)
  --image=FILE --mask=FILE          paints anew where the mask is white; --repeats=10 takes each step ten times, so that
                                    the new region fits the old one (RePaint). A mask is also left, right, top, bottom
                                    or center. An image is also SPLIT:INDEX of the run's data set, as in test:7.
  --interpolate=8                   each row goes in 8 pictures from one seed's latent to the next seed's, on the sphere
  --interpolate=8 --image=A,B       from one image to another, both encoded by DDIM
  --classifier=RUN, --weak=RUN      guides by a classifier of noised images, or away from a weaker model
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags as absl_flags
from jaxtyping import Float
from tqdm import tqdm

from diffjax import pictures
from diffjax.commands.flags import Arguments, Flags, define_sampling, define_workdir, required
from diffjax.commands.settings import define_settings, one_cell, with_guides
from diffjax.diffusion import sampling
from diffjax.errors import UserError
from diffjax.generate import Generator, balanced_labels
from diffjax.systems.pixels import to_unit_range
from diffjax.systems.plan import Plan, encode, latents
from diffjax.typing import ImageSpec
from diffjax.workdir import Run, load, open_source


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags)
    define_settings(flags, several=False)
    for name, text in {
        "out": "file to write: .png for a grid, .npz for arrays",
        "image": "picture file, or SPLIT:INDEX of the data set, to edit, to paint in, or two to go between",
        "mask": "picture file, white where --image is painted anew, or left | right | top | bottom | center",
    }.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)
    for name, default, text in (
        ("num", 16, "number of samples, or of rows with --interpolate"),
        ("interpolate", None, "pictures a row"),
        ("repeats", None, "times that each step is taken, with noise added back in between"),
    ):
        absl_flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer("label", None, "class of every sample, counted from 0", flag_values=flags)
    absl_flags.DEFINE_float("strength", None, "share of the process that --image is taken back", flag_values=flags)


def run(arguments: Arguments) -> int:
    out = Path(required(arguments, "out"))
    if out.suffix not in (".png", ".npz"):
        raise UserError(f"--out={out}: the name must end in .png (a grid) or .npz (arrays)")
    trained = load(required(arguments, "workdir"), arguments.checkpoint)
    system, variables = with_guides(arguments, trained)
    if (arguments.image or arguments.interpolate) and system.model is None:
        raise UserError(f"--image and --interpolate are of diffusion models, not of system={trained.config.system}")
    plan = system.plan(trained.config.sampler, **_overrides(arguments))
    seeds = arguments.seed + np.arange(arguments.num)
    condition = {"label": _labels(arguments, system.classes)}
    columns = pictures.class_columns(system.classes, arguments.num) if arguments.label is None else None
    if arguments.interpolate:
        columns = arguments.interpolate
        seeds, condition = _interpolations(arguments, trained, plan, seeds, condition)
    elif arguments.image:
        condition |= _edits(arguments, trained)
    generator = Generator(system, batch_size=min(arguments.batch_size, len(seeds)))
    with tqdm(total=len(seeds), unit="image") as bar:
        images = generator(variables, seeds, condition, plan, progress=bar.update)

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        pictures.save(out, pictures.grid(images, columns))
    else:
        labels = condition["label"] if system.classes else np.full(len(seeds), -1, np.int32)
        np.savez(out, images=images, labels=labels, seeds=seeds)
    print(f"{len(images)} samples of step {trained.step} in {out}")
    return 0


def _overrides(arguments: Arguments) -> dict:
    """The plan's settings that the flags give."""
    if arguments.strength is not None and (not arguments.image or arguments.mask or arguments.interpolate):
        raise UserError("--strength is of an --image to be edited, without --mask or --interpolate")
    if arguments.mask and (not arguments.image or arguments.interpolate):
        raise UserError("--mask needs the --image that it is of, and no --interpolate")
    if arguments.image and not (arguments.mask or arguments.interpolate or arguments.strength is not None):
        raise UserError("--image needs --strength (to edit it), --mask (to paint in it) or --interpolate")
    own = {name: getattr(arguments, name) for name in ("strength", "repeats")}
    if arguments.repeats is not None and (arguments.strength is not None or arguments.interpolate):
        raise UserError("--repeats is of samples and of --mask, not of --strength or --interpolate")
    return one_cell(arguments) | {name: value for name, value in own.items() if value is not None}


def _labels(arguments: Arguments, classes: int) -> np.ndarray:
    if arguments.label is None:
        return balanced_labels(arguments.num, classes)
    if not 0 <= arguments.label < classes:
        limit = f"has the classes 0 to {classes - 1}" if classes else "was trained without labels"
        raise UserError(f"--label={arguments.label}: this run {limit}")
    return np.full(arguments.num, arguments.label, np.int32)


def _interpolations(arguments: Arguments, trained: Run, plan: Plan, seeds: np.ndarray, condition: dict):
    """Seeds and condition of every picture between two latents, row by row."""

    @jax.jit
    def ends(variables, keys, label, plan):
        model = trained.system.model(variables, {"label": label})
        return latents(model, keys, plan)

    @jax.jit
    def encoded(variables, images, label, plan):
        return encode(trained.system.model(variables, {"label": label}), images, plan)

    labels = condition["label"]
    if arguments.image:
        files = arguments.image.split(",")
        if len(files) != 2:
            raise UserError(f"--interpolate goes between two images, --image=A,B, not {len(files)}")
        pair = np.stack([_picture(file, trained) for file in files])
        found = np.asarray(encoded(trained.variables, pair, np.repeat(labels[:1], 2), plan))
        start, end, seeds, labels = found[:1], found[1:], seeds[:1], labels[:1]
    else:
        keys = jax.vmap(jax.random.key)(np.append(seeds, seeds[-1] + 1).astype(np.uint32))
        found = np.asarray(ends(trained.variables, keys, np.append(labels, labels[-1]), plan))
        start, end = found[:-1], found[1:]
    count = arguments.interpolate
    weights = np.tile(np.linspace(0, 1, count, dtype=np.float32), len(start))
    between = sampling.slerp(start.repeat(count, 0), end.repeat(count, 0), weights)
    return seeds.repeat(count), {"label": labels.repeat(count), "latent": np.asarray(between)}


def _edits(arguments: Arguments, trained: Run) -> dict[str, np.ndarray]:
    """The image to be edited or painted in, and the mask of what is kept of it, once for every sample."""
    given = {"image": _picture(arguments.image, trained)}
    if arguments.mask:
        given["mask"] = 1.0 - _mask(arguments.mask, trained.spec)
    return {name: np.repeat(value[None], arguments.num, axis=0) for name, value in given.items()}


def _picture(text: str, trained: Run) -> Float[np.ndarray, "H W C"]:
    """The picture of a file or of the run's data set, [-1, 1]."""
    split, colon, index = text.rpartition(":")
    if colon and index.isdigit():
        source = open_source(trained.config, split)
        if int(index) >= len(source):
            raise UserError(f"--image={text}: {split} has {len(source)} images")
        return np.asarray(to_unit_range(source.__getitems__([int(index)])[0]["image"]))
    return np.asarray(to_unit_range(pictures.load(text, trained.spec.size, trained.spec.channels)))


def _mask(text: str, spec: ImageSpec) -> Float[np.ndarray, "H W C"]:
    """1 where the picture is painted anew, 0 where it is kept."""
    half, quarter = spec.size // 2, spec.size // 4
    regions = {
        "left": np.s_[:, :half],
        "right": np.s_[:, half:],
        "top": np.s_[:half],
        "bottom": np.s_[half:],
        "center": np.s_[quarter:-quarter, quarter:-quarter],
    }
    mask = np.zeros((spec.size, spec.size, 1), np.float32)
    if text in regions:
        mask[regions[text]] = 1.0
    else:
        mask = pictures.load(text, spec.size, 1).astype(np.float32) / 255.0
    return np.repeat(np.round(mask), spec.channels, axis=-1)
