"""Draw samples from a trained run, as a picture or as arrays.

  python launch.py sample --workdir=runs/digits --out=samples.png --num=100 [--label=3]
                          [--sampler=ddim --steps=20 --eta=0 --guidance=2 --grid=trailing]

  --prompt="a small red circle"     of what a run that reads text is asked for; --prompts=FILE has one a line, and --num
                                    is then of each. --best_of=64 draws as many for each and keeps the --num that
                                    --clip (default: the CLIP trained with the run) finds nearest to it
  --initial_image=FILE --kept=0.5   completes a picture from its top, of which that share stays

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
from diffjax.generate import Generator
from diffjax.judge import best_of, judge_of
from diffjax.prompts import Prompts, prompts
from diffjax.systems.pixels import to_unit_range
from diffjax.systems.plan import Plan, encode, latents
from diffjax.typing import ImageSpec, System
from diffjax.workdir import Run, load, open_source


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags)
    define_settings(flags, several=False)
    for name, text in {
        "prompt": "what the pictures show",
        "prompts": "file of prompts, one a line, UTF-8",
        "clip": "run or folder of the CLIP that --best_of ranks by",
        "initial_image": "picture file, or SPLIT:INDEX of the data set, to complete from its first rows",
        "out": "file to write: .png for a grid, .npz for arrays",
        "image": "picture file, or SPLIT:INDEX of the data set, to edit, to paint in, or two to go between",
        "mask": "picture file, white where --image is painted anew, or left | right | top | bottom | center",
    }.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)
    for name, default, text in (
        ("num", 16, "number of samples, or of rows with --interpolate"),
        ("best_of", None, "samples drawn for each prompt, of which the best --num are kept"),
        ("interpolate", None, "pictures a row"),
        ("repeats", None, "times that each step is taken, with noise added back in between"),
    ):
        absl_flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer("label", None, "class of every sample, counted from 0", flag_values=flags)
    absl_flags.DEFINE_float("kept", None, "share of --initial_image, from the top, that stays (0.5)", flag_values=flags)
    absl_flags.DEFINE_float("strength", None, "share of the process that --image is taken back", flag_values=flags)


def run(arguments: Arguments) -> int:
    out = Path(required(arguments, "out"))
    if out.suffix not in (".png", ".npz"):
        raise UserError(f"--out={out}: the name must end in .png (a grid) or .npz (arrays)")
    trained = load(required(arguments, "workdir"), arguments.checkpoint)
    system, variables = with_guides(arguments, trained)
    if (arguments.image or arguments.interpolate) and system.model is None:
        raise UserError(f"--image and --interpolate are of diffusion models, not of system={trained.config.system}")
    if arguments.initial_image and trained.config.system != "prior":
        raise UserError(f"--initial_image is completed code by code, by a prior, not by system={trained.config.system}")
    plan = system.plan(trained.config.sampler, **_overrides(arguments))
    asked, keep = _asked(arguments, trained, system)
    candidates = arguments.best_of or keep
    if candidates < keep:
        raise UserError(f"--best_of={candidates} is fewer than the {keep} that --num keeps")
    judge = judge_of(trained, arguments.clip, arguments.batch_size) if candidates > keep else None
    columns = _columns(arguments, system, len(asked.condition["label"]), keep)
    if arguments.interpolate:
        asked, seeds = _interpolations(arguments, trained, plan, asked)
    else:
        asked.condition.update(_edits(arguments, trained, len(asked.condition["label"])))
    generator = Generator(system, batch_size=min(arguments.batch_size, candidates * len(asked.condition["label"])))
    with tqdm(total=candidates * len(asked.condition["label"]), unit="image") as bar:
        if arguments.interpolate:
            images = generator(variables, seeds, asked.condition, plan, progress=bar.update)
        else:
            given = {"candidates": candidates, "keep": keep, "seed": arguments.seed, "progress": bar.update}
            images, seeds = best_of(generator, variables, asked, plan, judge, **given)

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        titles = asked.captions if asked.captions and columns else ()
        pictures.save(out, pictures.grid(images, columns, titles))
    else:
        labels = asked.condition["label"] if system.classes else np.full(len(seeds), -1, np.int32)
        said = {"captions": np.repeat(asked.captions, keep)} if asked.captions else {}
        np.savez(out, images=images, labels=labels, seeds=seeds, **said)
    print(f"{len(images)} samples of step {trained.step} in {out}")
    return 0


def _asked(arguments: Arguments, trained: Run, system: System) -> tuple[Prompts, int]:
    """What is asked for, and how many pictures of each: --num of each prompt, or of all classes together."""
    if not system.text:
        for name in ("prompt", "prompts", "best_of", "clip"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name} is of runs that read text, and {trained.workdir.path} reads none")
        return Prompts({"label": _labels(arguments, system.classes)}, None), 1
    if arguments.label is not None or arguments.interpolate:
        raise UserError("--label and --interpolate are of runs that read no text: give --prompt")
    said = _read_prompts(arguments)
    for text, cut in zip(said, trained.tokenizer.overlong(said, system.text.length), strict=True):
        if cut:
            print(
                f"the last {cut} tokens of {text[:60]!r}... are not read: {system.text.length} are, with start and end"
            )
    return prompts(system, len(said), trained.tokenizer, said), arguments.num


def _read_prompts(arguments: Arguments) -> list[str]:
    """Of --prompt or --prompts. Raises UserError for neither, both, and what cannot be read."""
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise UserError("this run draws what it is told: give one of --prompt=TEXT and --prompts=FILE")
    if arguments.prompt is not None:
        said = [arguments.prompt]
    else:
        try:
            said = [line.strip() for line in Path(arguments.prompts).read_text("utf-8").splitlines()]
        except OSError as error:
            raise UserError(f"cannot read --prompts={arguments.prompts}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--prompts={arguments.prompts} is not UTF-8: save it as that") from error
        said = [line for line in said if line]
    if not any(text.strip() for text in said):
        raise UserError("the prompt is empty: say what the pictures should show")
    return said


def _columns(arguments: Arguments, system: System, count: int, keep: int) -> int | None:
    """Of the grid: a row of each prompt, a column of each class."""
    if arguments.interpolate:
        return arguments.interpolate
    if system.text:
        return keep if count > 1 else None
    return pictures.class_columns(system.classes, count) if arguments.label is None else None


def _overrides(arguments: Arguments) -> dict:
    """The plan's settings that the flags give."""
    if arguments.strength is not None and (not arguments.image or arguments.mask or arguments.interpolate):
        raise UserError("--strength is of an --image to be edited, without --mask or --interpolate")
    if arguments.mask and (not arguments.image or arguments.interpolate):
        raise UserError("--mask needs the --image that it is of, and no --interpolate")
    if arguments.image and not (arguments.mask or arguments.interpolate or arguments.strength is not None):
        raise UserError("--image needs --strength (to edit it), --mask (to paint in it) or --interpolate")
    own = {name: getattr(arguments, name) for name in ("strength", "repeats", "kept")}
    if arguments.kept is not None and not arguments.initial_image:
        raise UserError("--kept is of an --initial_image to be completed")
    if arguments.initial_image and arguments.kept is None:
        own["kept"] = 0.5
    if arguments.repeats is not None and (arguments.strength is not None or arguments.interpolate):
        raise UserError("--repeats is of samples and of --mask, not of --strength or --interpolate")
    return one_cell(arguments) | {name: value for name, value in own.items() if value is not None}


def _labels(arguments: Arguments, classes: int) -> np.ndarray:
    if arguments.label is None:
        return np.arange(arguments.num, dtype=np.int32) % max(classes, 1)
    if not 0 <= arguments.label < classes:
        limit = f"has the classes 0 to {classes - 1}" if classes else "was trained without labels"
        raise UserError(f"--label={arguments.label}: this run {limit}")
    return np.full(arguments.num, arguments.label, np.int32)


def _interpolations(arguments: Arguments, trained: Run, plan: Plan, asked: Prompts) -> tuple[Prompts, np.ndarray]:
    """What is asked for and the seeds of every picture between two latents, row by row."""
    seeds = arguments.seed + np.arange(arguments.num)

    @jax.jit
    def ends(variables, keys, label, plan):
        model = trained.system.model(variables, {"label": label})
        return latents(model, keys, plan)

    @jax.jit
    def encoded(variables, images, label, plan):
        return encode(trained.system.model(variables, {"label": label}), images, plan)

    labels = asked.condition["label"]
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
    return Prompts({"label": labels.repeat(count), "latent": np.asarray(between)}, None), seeds.repeat(count)


def _edits(arguments: Arguments, trained: Run, count: int) -> dict[str, np.ndarray]:
    """The image to be edited, completed or painted in, and the mask of what is kept of it, `count` times."""
    if not (image := arguments.image or arguments.initial_image):
        return {}
    given = {"image": _picture(image, trained)}
    if arguments.mask:
        given["mask"] = 1.0 - _mask(arguments.mask, trained.spec)
    return {name: np.repeat(value[None], count, axis=0) for name, value in given.items()}


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
