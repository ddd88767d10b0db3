"""Draw samples from a trained run, as a picture or as arrays.

  python launch.py sample --workdir=runs/digits --out=samples.png --num=100 [--label=3]
                          [--sampler=ddim --steps=20 --eta=0 --guidance=2 --grid=trailing]

  --prompt="a small red circle"     of what a run that reads text is asked for; --prompts=FILE has one a line, and --num
                                    is then of each. --best_of=64 draws as many for each and keeps the --num that
                                    --clip (default: the CLIP trained with the run) finds nearest to it
  --initial_image=FILE --kept=0.5   completes a picture from its top, of which that share stays

  --steps=prior:64,decoder:50       a setting of one stage of a chain (GLIDE, unCLIP); without a name it is that of the
                                    stage that draws the first picture. --prior=diffusion|ar|none is unCLIP's
Classes take turns unless --label is given. What is not given is as in the run's config. --out=X.png writes a grid,
--out=X.npz the arrays images (uint8 [N, H, W, C]), labels (-1: none) and seeds.

  --image=FILE --strength=0.5       samples that start from the image, noised for half of the process (SDEdit)
  --image=FILE --mask=FILE          paints anew where the mask is white; --repeats=10 takes each step ten times, so that
                                    the new region fits the old one (RePaint). A mask is also left, right, top, bottom
                                    or center. An image is also SPLIT:INDEX of the run's data set, as in test:7.
  --interpolate=8                   each row goes in 8 pictures from one seed's latent to the next seed's, on the sphere
  --interpolate=8 --image=A,B       from one image to another, both encoded by DDIM; with unCLIP their embeddings too
  --image=FILE                      of unCLIP variations of the image: its embedding, decoded anew. --invert starts from
                                    its own latent, so that --eta=0 draws it again and more eta varies it more
  --image=FILE --base_prompt="what it shows" --prompt="what it shall show" --interpolate=8
                                    unCLIP's text diff: along the difference of what CLIP makes of both
  --image=FILE --components=1,4,16  what unCLIP draws of the first principal components of the image's embedding
  --classifier=RUN, --weak=RUN      guides by a classifier of noised images, or away from a weaker model
"""

from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from tqdm import tqdm

from diffjax import io, pictures
from diffjax.commands import edits
from diffjax.commands.flags import MOST, Arguments, Flags, define_sampling, define_workdir, required
from diffjax.commands.settings import define_settings, one_cell, with_guides
from diffjax.errors import UserError
from diffjax.generate import Generator
from diffjax.judge import best_of, judge_of
from diffjax.prompts import Prompts, prompts
from diffjax.run import Run, load
from diffjax.typing import System


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
        "base_prompt": "what --image shows, which --prompt is to change",
        "components": "numbers of principal components of --image's embedding, separated by commas",
        "mask": "picture file, white where --image is painted anew, or left | right | top | bottom | center",
    }.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)
    for name, default, text in (
        ("num", 16, "number of samples, or of rows with --interpolate (between two images there is one)"),
        ("best_of", None, "samples drawn for each prompt, of which the best --num are kept"),
        ("interpolate", None, "pictures a row"),
        ("repeats", None, "times that each step is taken, with noise added back in between"),
    ):
        absl_flags.DEFINE_integer(name, default, text, 1, MOST, flag_values=flags)
    absl_flags.DEFINE_boolean("invert", False, "start from the latent of --image by DDIM", flag_values=flags)
    absl_flags.DEFINE_integer("label", None, "class of every sample, counted from 0", flag_values=flags)
    absl_flags.DEFINE_float("kept", None, "share of --initial_image, from the top, that stays (0.5)", flag_values=flags)
    absl_flags.DEFINE_float("strength", None, "share of the process that --image is taken back", flag_values=flags)


def run(arguments: Arguments) -> int:
    out = Path(required(arguments, "out"))
    if out.suffix not in (".png", ".npz"):
        raise UserError(f"--out={out}: the name must end in .png (a grid) or .npz (arrays)")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out={out} ({error.strerror}): choose another place") from error
    trained = load(required(arguments, "workdir"), arguments.checkpoint)
    system, variables = with_guides(arguments, trained)
    if system.embeds:
        raise UserError(f"{trained.workdir.path} draws embeddings, which nobody can look at: sample the whole chain")
    edits.check(arguments, trained)
    plan = system.plan(trained.config.sampler, **_overrides(arguments))
    keep, candidates, judge = 1, 1, None
    if edits.varied(arguments, trained):
        if arguments.best_of or arguments.prompts:
            raise UserError("--best_of and --prompts are of prompts, not of an --image that is drawn again")
        draw = edits.manipulated(arguments, trained, plan) if system.manipulate else edits.again(arguments, trained)
        asked, seeds, columns = draw
    else:
        asked, keep = _asked(arguments, trained, system)
        candidates = arguments.best_of or keep
        if candidates < keep:
            raise UserError(f"--best_of={candidates} is fewer than the {keep} that --num keeps")
        judge = judge_of(trained, arguments.clip, arguments.batch_size) if candidates > keep else None
        columns, seeds = _columns(arguments, system, len(asked.condition["label"]), keep), None
        if arguments.interpolate:
            asked, seeds, columns = edits.between_latents(arguments, trained, plan, asked)
            keep = candidates = 1
        else:
            asked = edits.edited(arguments, trained, asked)
    total = candidates * len(asked.condition["label"])
    generator = Generator(system, batch_size=min(arguments.batch_size, total))
    with tqdm(total=total, unit="image") as bar:
        if seeds is not None:
            images = generator(variables, seeds, asked.condition, plan, progress=bar.update)
        else:
            given = {"candidates": candidates, "keep": keep, "seed": arguments.seed, "progress": bar.update}
            images, seeds = best_of(generator, variables, asked, plan, judge, **given)

    if out.suffix == ".png":
        titles = asked.captions if asked.captions and columns and not arguments.interpolate else ()
        pictures.save(out, pictures.grid(images, columns, titles))
    else:
        labels = asked.condition["label"] if system.classes else np.full(len(seeds), -1, np.int32)
        said = {"captions": np.repeat(asked.captions, keep)} if asked.captions else {}
        with io.atomic_path(out) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images, labels=labels, seeds=seeds, **said)
    print(f"{len(images)} samples" + f" of step {trained.step}" * bool(trained.step) + f" in {out}")
    return 0


def _asked(arguments: Arguments, trained: Run, system: System) -> tuple[Prompts, int]:
    """What is asked for, and how many pictures of each: --num of each prompt, or of all classes together."""
    if not system.text:
        for name in ("prompt", "prompts", "best_of", "clip"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name} is of runs that read text, and {trained.workdir.path} reads none")
        return Prompts({"label": _labels(arguments, system.classes)}, None), 1
    if arguments.label is not None:
        raise UserError("--label is of runs that read no text: give --prompt")
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
    own = {name: getattr(arguments, name) for name in ("strength", "repeats", "kept")}
    if arguments.initial_image and arguments.kept is None:
        own["kept"] = 0.5
    return one_cell(arguments) | {name: value for name, value in own.items() if value is not None}


def _labels(arguments: Arguments, classes: int) -> np.ndarray:
    if arguments.label is None:
        return np.arange(arguments.num, dtype=np.int32) % max(classes, 1)
    if not 0 <= arguments.label < classes:
        limit = f"has the classes 0 to {classes - 1}" if classes else "was trained without labels"
        raise UserError(f"--label={arguments.label}: this run {limit}")
    return np.full(arguments.num, arguments.label, np.int32)
