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

from diffjax import io
from diffjax.cli import edits
from diffjax.cli.flags import MOST, Arguments, Flags, check_writable, define_sampling, define_workdir, required
from diffjax.cli.settings import batch_size, define_settings, one_cell, with_guides
from diffjax.errors import UserError, note, one_line
from diffjax.inference import image_grids
from diffjax.inference.prompts import Prompts, check_text, note_cut, prompts, read_file
from diffjax.inference.reranking import best_of, judge_of
from diffjax.inference.sampler_runner import Generator
from diffjax.models.pipelines.pipeline import ChainPlan
from diffjax.nn.pretrained import clip_checkpoint
from diffjax.runs.loading import Run, image_spec, load
from diffjax.runs.workdir import Workdir
from diffjax.typing import System

_LONGEST_TITLE = 100  # characters


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
    absl_flags.DEFINE_integer("label", None, "class of every sample, counted from 0", 0, flag_values=flags)
    absl_flags.DEFINE_float("kept", None, "share of --initial_image, from the top, that stays (0.5)", flag_values=flags)
    absl_flags.DEFINE_float("strength", None, "share of the process that --image is taken back", flag_values=flags)


def run(arguments: Arguments) -> int:
    out = Path(required(arguments, "out"))
    if out.suffix not in (".png", ".npz"):
        raise UserError(f"--out={out}: the name must end in .png (a grid) or .npz (arrays)")
    said = _check_files(arguments, out)
    trained = load(required(arguments, "workdir"), arguments.checkpoint)
    system, variables = with_guides(arguments, trained)
    if system.embeds:
        raise UserError(f"{trained.workdir.path} draws embeddings, which nobody can look at: sample the whole chain")
    edits.check(arguments, trained)
    plan = system.plan(trained.config.sampler, **_overrides(arguments))
    keep, candidates, judge = 1, 1, None
    if edits.varied(arguments, trained):
        draw = edits.manipulated(arguments, trained, plan) if system.manipulate else edits.again(arguments, trained)
        asked, seeds, columns = draw
    else:
        asked, keep = _asked(arguments, trained, system, said)
        candidates = arguments.best_of or keep
        if candidates < keep:
            raise UserError(f"--best_of={candidates} is fewer than the {keep} that --num keeps")
        if arguments.best_of == keep:
            note(f"--best_of={keep}: has no effect, as --num keeps as many")
        judge = judge_of(trained, arguments.clip, arguments.batch_size) if candidates > keep else None
        if judge:
            judge.note_cut(said)
        columns, seeds = _columns(arguments, system, len(asked.condition["label"]), keep), None
        if arguments.interpolate:
            asked, seeds, columns = edits.between_latents(arguments, trained, plan, asked)
            keep = candidates = 1
        else:
            asked = edits.edited(arguments, trained, asked)
    _note_rounding(arguments, plan)
    total = candidates * len(asked.condition["label"])
    generator = Generator(system, batch_size=batch_size(arguments, total))
    with tqdm(total=total, unit="image") as bar:
        if seeds is not None:
            images = generator(variables, seeds, asked.condition, plan, progress=bar.update)
        else:
            given = {"candidates": candidates, "keep": keep, "seed": arguments.seed, "progress": bar.update}
            images, seeds = best_of(generator, variables, asked, plan, judge, **given)

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        titles = map(_title, asked.captions) if asked.captions and columns and not arguments.interpolate else ()
        image_grids.save(out, image_grids.grid(images, columns, tuple(titles)))
    else:
        labels = asked.condition["label"] if system.classes else np.full(len(seeds), -1, np.int32)
        captions = {"captions": np.repeat(asked.captions, keep)} if asked.captions else {}
        with io.atomic_path(out) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images, labels=labels, seeds=seeds, **captions)
    print(f"{len(images)} samples" + f" of step {trained.step}" * bool(trained.step) + f" in {out}")
    return 0


def _check_files(arguments: Arguments, out: Path) -> list[str] | None:
    """Returns the prompts, None without any, once all files that the command line names are known to be usable.

    That is before the run is opened, which may take long. Raises UserError for one that is not.
    """
    config = Workdir(required(arguments, "workdir")).read_config()
    if arguments.label is not None and (classes := image_spec(config).classes):
        edits.check_label(arguments.label, classes)
    for name in ("classifier", "weak", "clip"):
        path = getattr(arguments, name)
        if path and not (name == "clip" and clip_checkpoint.is_published(path)):
            Workdir(path).read_config()
    edits.check_files(arguments)
    check_writable("out", out)
    if arguments.prompt and arguments.prompts:
        raise UserError("--prompt and --prompts are both given: give one of --prompt=TEXT and --prompts=FILE")
    for name in ("prompt", "base_prompt"):
        if getattr(arguments, name):
            check_text(f"--{name}", getattr(arguments, name))
    if arguments.prompt:
        return [arguments.prompt]
    return read_file(arguments.prompts) if arguments.prompts else None


def _asked(arguments: Arguments, trained: Run, system: System, said: list[str] | None) -> tuple[Prompts, int]:
    """What is asked for, and how many pictures of each: --num of each prompt, or of all classes together."""
    if not system.text:
        for name in ("prompt", "prompts", "best_of", "clip"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name} is of runs that read text, and {trained.workdir.path} reads none")
        return Prompts({"label": _labels(arguments, system.classes)}, None), 1
    if arguments.label is not None:
        raise UserError("--label is of runs that read no text: give --prompt")
    if not said:
        raise UserError("this run is text-conditioned: give one of --prompt=TEXT and --prompts=FILE")
    note_cut(trained.tokenizer, system.text.length, said)
    return prompts(system, len(said), trained.tokenizer, said), arguments.num


def _title(caption: str) -> str:
    """Returns a caption as the title of a row: one printable line that is no wider than a page."""
    line = one_line(caption)
    return line if len(line) <= _LONGEST_TITLE else f"{line[: _LONGEST_TITLE - 3]}..."


def _note_rounding(arguments: Arguments, plan) -> None:
    """Prints a note where --strength is rounded to steps, and where --kept is to rows of codes."""
    first = plan.stages[plan.main] if isinstance(plan, ChainPlan) else plan
    if arguments.strength is not None:
        steps = int(first.steps)
        taken = steps - int(first.begin)
        if abs(taken - arguments.strength * steps) > 1e-6:
            note(f"--strength={arguments.strength:g}: rounded to whole steps, the last {taken} of {steps}")
    if arguments.initial_image:
        note(f"--initial_image={arguments.initial_image}: its first {first.rows} rows of codes stay")


def _columns(arguments: Arguments, system: System, count: int, keep: int) -> int | None:
    """Of the grid: a row of each prompt, a column of each class."""
    if arguments.interpolate:
        return arguments.interpolate
    if system.text:
        return keep if count > 1 else None
    return image_grids.class_columns(system.classes, count) if arguments.label is None else None


def _overrides(arguments: Arguments) -> dict:
    """The plan's settings that the flags give."""
    own = {name: getattr(arguments, name) for name in ("strength", "repeats", "kept")}
    if arguments.initial_image and arguments.kept is None:
        own["kept"] = 0.5
    return one_cell(arguments) | {name: value for name, value in own.items() if value is not None}


def _labels(arguments: Arguments, classes: int) -> np.ndarray:
    if arguments.label is None:
        return np.arange(arguments.num, dtype=np.int32) % max(classes, 1)
    edits.check_label(arguments.label, classes)
    return np.full(arguments.num, arguments.label, np.int32)
