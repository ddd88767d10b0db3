"""Sample images from a trained run, as a grid, as single images or as arrays.

  python launch.py sample --workdir=runs/digits --out=samples.png --num=100 [--label=3]
                          [--sampler=ddim --steps=20 --eta=0 --guidance=2 --grid=trailing]

--out=X.png (.jpg, .webp) writes a grid, by default in the folder samples of the run. --out=DIR/ writes one PNG per
sample. --out=X.npz writes the arrays images (uint8 [N, H, W, C]), labels (-1: none) and seeds.
PNG files store their settings: --from=X.png samples the same image again, with the other flags of the command line
instead of the stored ones. An image of --out=DIR/ is sampled with all samples of its command, for the same pixels.
Without --label the classes alternate. Settings that are not on the command line are those of the run's config.

Text-conditioned runs:
  --prompt="a small red circle"     samples --num images of this prompt
  --prompts=FILE                    one prompt per line; --num is the number of images per prompt
  --best_of=64                      samples 64 images per prompt and keeps the --num most similar to it, by --clip
                                    (default: the CLIP trained with the run)
  --initial_image=FILE --keep_fraction=0.5
                                    completes an image: its top half is kept, the rest is sampled (priors over tokens)

Pipelines (GLIDE, unCLIP):
  --steps=prior:64,decoder:50       sets a setting per stage; without a stage name it is set for the stage that samples
                                    the first image
  --prior=diffusion|ar|none         selects unCLIP's prior

Images as input, a file or SPLIT:INDEX of the run's data set, such as test:7:
  --image=FILE --strength=0.5       edits the image: adds noise for half of the process, then denoises (SDEdit)
  --image=FILE --mask=FILE          inpaints where the mask is white; a mask is a file, or left, right, top, bottom or
                                    center. --resample_steps=10 repeats each step, for more consistent results (RePaint)
  --interpolate=8                   interpolates in 8 images from the latent of one seed to that of the next, per row
  --image=A,B --interpolate=8       interpolates between two images, encoded by DDIM; with unCLIP their embeddings too
  --image=FILE                      with unCLIP: variations of the image, decoded from its embedding. --invert starts
                                    from the image's latent: --eta=0 then reconstructs it, a larger eta varies it
  --image=FILE --base_prompt="a blue circle" --prompt="a red circle" --interpolate=8
                                    with unCLIP: moves the image along the difference of two text embeddings
  --image=FILE --components=1,4,16  with unCLIP: decodes the first principal components of the image's embedding

Other runs:
  --codec=RUN                       decodes latents with another autoencoder of the same latents, such as the tiny TAESD
                                    (configs/published/taesd.py), for previews
  --classifier=RUN, --weak=RUN      a classifier of noised images, or a weaker model to move away from (autoguidance)
"""

import itertools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags as absl_flags
from jaxtyping import UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from diffjax import __version__, io
from diffjax.cli import edits
from diffjax.cli.flags import (
    MAX_COUNT,
    Arguments,
    Flags,
    check_writable,
    define_sampling,
    define_workdir,
    parse,
    required,
)
from diffjax.cli.sample_flags import check_sample_flags, is_variation
from diffjax.cli.settings import batch_size, define_settings
from diffjax.errors import UserError, note
from diffjax.inference import image_grids
from diffjax.inference.guidance_models import attach_guidance_models
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
from diffjax.inference.reranking import best_of, prepare_reranking
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.models.base import GenerativeModel
from diffjax.models.capabilities import is_pipeline, is_text_conditioned
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.nn.pretrained import clip_checkpoint
from diffjax.runs.checkpoint_files import list_steps
from diffjax.runs.config_files import to_json
from diffjax.runs.datasets import dataset_info, image_spec
from diffjax.runs.loading import Run, load, with_codec
from diffjax.runs.workdir import Workdir

_OUTPUTS = (*image_grids.FORMATS, ".npz")
_PATHS = (
    "workdir",
    "classifier",
    "weak",
    "clip",
    "codec",
    "prompts",
    "image",
    "initial_image",
    "mask",
)  # flags of files


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags)
    define_settings(flags)
    for name, text in {
        "prompt": "caption of the images",
        "prompts": "UTF-8 file of prompts, one per line",
        "clip": "run or folder of the CLIP that --best_of ranks by",
        "codec": "run of another autoencoder of the same latents, such as a tiny one, to encode and decode with",
        "initial_image": "image file, or SPLIT:INDEX of the data set, to complete from its top rows",
        "out": "file to write: .png, .jpg or .webp for a grid, .npz for arrays; or DIR/ for one PNG per sample "
        "(default: the next samples/sample_NUMBER.png of the run)",
        "from": "PNG of `sample`, to sample again with its settings",
        "image": "image file, or SPLIT:INDEX of the data set, to edit or inpaint; or two, A,B, to interpolate",
        "base_prompt": "caption of --image, for the text difference to --prompt",
        "components": "numbers of principal components of --image's embedding, separated by commas",
        "mask": "image file, white where --image is inpainted, or left | right | top | bottom | center",
    }.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)
    for name, default, text in (
        ("num", 16, "number of samples, or of rows with --interpolate (between two images: one row)"),
        ("best_of", None, "number of samples per prompt, of which the best --num are kept"),
        ("interpolate", None, "number of images per row"),
        ("resample_steps", None, "number of times that each step is taken, with noise added in between"),
    ):
        absl_flags.DEFINE_integer(name, default, text, 1, MAX_COUNT, flag_values=flags)
    absl_flags.DEFINE_boolean("invert", False, "start from the latent of --image, by DDIM inversion", flag_values=flags)
    absl_flags.DEFINE_integer("label", None, "class of every sample, from 0", 0, flag_values=flags)
    absl_flags.DEFINE_float(
        "keep_fraction", None, "fraction of --initial_image to keep, from the top (0.5)", flag_values=flags
    )
    absl_flags.DEFINE_float("strength", None, "fraction of the process that --image is noised for", flag_values=flags)


def run(arguments: Arguments) -> int:
    index = None
    if getattr(arguments, "from"):
        arguments, index = _restore(arguments)
    out, to_folder = _output(arguments)
    captions = _check_files(arguments, out / "00000.png" if to_folder else out)
    trained = load(required(arguments, "workdir"), arguments.checkpoint, ema_length=arguments.ema_length)
    if arguments.codec:
        trained = with_codec(trained, arguments.codec)
    model, variables = attach_guidance_models(trained, arguments.as_dict())
    check_samples_images(trained)
    check_sample_flags(arguments, trained)
    settings = SettingsFactory(model, trained.config.sampler)(**_overrides(arguments))

    keep, candidates, reranker, grid = 1, 1, None, None
    if is_variation(arguments, trained):
        grid = edits.variations(arguments, trained, settings)
    else:
        prompts, keep = sample_prompts(trained, model.classes, arguments.num, captions, arguments.label)
        prompts = with_numbers(trained, prompts, _numbers(arguments))
        reranking = {"clip": arguments.clip, "batch_size": arguments.batch_size}
        candidates, reranker = prepare_reranking(trained, captions, keep, arguments.best_of, **reranking)
        if arguments.interpolate:
            grid, keep, candidates = edits.interpolate_latents(arguments, trained, settings, prompts), 1, 1
        else:
            prompts = edits.with_image(arguments, trained, prompts)
            grid = edits.SampleGrid(prompts, np.array([]), _layout(arguments, trained, model, prompts, keep))
    _note_rounding(arguments, model, settings)

    prompts, seeds, layout = grid
    total = candidates * prompts.size
    runner = SampleRunner(model, batch_size=batch_size(arguments, total))
    with tqdm(total=total, unit="image") as bar:
        if len(seeds):
            images = runner(variables, seeds, prompts.conditions, settings, progress=bar.update)
        else:
            options = {"candidates": candidates, "keep": keep, "seed": arguments.seed, "progress": bar.update}
            images, seeds = best_of(runner, variables, prompts, settings, reranker, **options)
    settings_of, written = _recorder(arguments, trained, prompts, seeds, model), f"{len(images)} samples"
    if to_folder:
        for i, image in enumerate(images):
            image_grids.save(out / f"{i:05d}.png", image, settings_of(i))
    elif index is not None and index < len(images) and out.suffix != ".npz":
        image_grids.save(out, images[index], settings_of(index))
        written = f"sample {index} of {len(images)}"
    elif out.suffix != ".npz":
        image_grids.save(out, image_grids.grid(images, layout), settings_of(None))
    else:
        _write_arrays(out, images, seeds, prompts, model)
    print(written + f" of step {trained.step}" * bool(trained.step) + f" in {out}")
    return 0


def _restore(arguments: Arguments) -> tuple[Arguments, int | None]:
    """Returns the flags stored in --from, replaced by those of the command line; and the index of its sample.

    The index is None if the image is a grid.

    Raises:
      UserError: the image has no settings, or its run is missing or has another config.
    """
    path = Path(getattr(arguments, "from"))
    try:
        stored = image_grids.read_settings(path)
        flags, index = stored.get("flags"), stored.get("index")
        bad_index = index is not None and (type(index) is not int or index < 0)
        if not isinstance(flags, dict) or {"out", "from"} & flags.keys() or bad_index:  # neither flag is stored
            raise UserError(f"{path}: its settings are damaged; name another PNG of launch.py sample")
        flags |= {name: getattr(arguments, name) for name in arguments.given_flags - {"from"}}
        declared = Flags()
        define(declared)
        merged = parse(declared, ["sample", *(f"--{name}={value}" for name, value in flags.items())])
        workdir = Workdir(required(merged, "workdir"))
        if not workdir.config.exists():
            raise UserError(f"{workdir.name}: the run of the image is missing; pass its new folder as --workdir=RUN")
        if io.short_hash(to_json(workdir.read_config())) != stored.get("config"):
            raise UserError(f"{workdir.name}: has another config than the run of the image; pass --workdir=RUN")
    except UserError as error:
        raise UserError(
            f"--from={error}" if str(error).startswith(f"{path}:") else f"--from={path}: {error}"
        ) from error
    return merged, None if "num" in arguments.given_flags else index


def _output(arguments: Arguments) -> tuple[Path, bool]:
    """Returns the path to write, and whether it is a folder. Raises UserError if the suffix is of no known format."""
    if arguments.out is None:
        folder = Workdir(required(arguments, "workdir")).samples
        return next(path for n in itertools.count(1) if not (path := folder / f"sample_{n:04d}.png").exists()), False
    out = Path(arguments.out)
    if arguments.out.endswith("/"):
        return out, True
    if out.suffix not in _OUTPUTS:
        grids = ", ".join(image_grids.FORMATS)
        raise UserError(f"--out={out}: the name must end in {grids} (a grid), .npz (arrays) or / (a folder)")
    return out, False


def _recorder(
    arguments: Arguments, trained: Run, prompts: Prompts, seeds: np.ndarray, model: GenerativeModel
) -> Callable[[int | None], dict[str, Any]]:
    """Returns a function from the index of a sample (None: the grid of all) to the settings to store in its image."""
    flags = {name: getattr(arguments, name) for name in sorted(arguments.given_flags - {"out", "from"})}
    for name in _PATHS:
        if name in flags and Path(flags[name]).exists():
            flags[name] = str(Path(flags[name]).resolve())
    if list_steps(trained.workdir.checkpoints):
        flags["checkpoint"] = trained.step
    common = {
        "command": shlex.join(sys.argv),
        "version": __version__,
        "config": io.short_hash(to_json(trained.config)),
        "checkpoint": trained.step,
        "sampler": trained.config.get("sampler", ConfigDict()).to_dict() | _overrides(arguments),
        "devices": f"{jax.devices()[0].device_kind} x {jax.local_device_count()}",
        "flags": flags,
    }
    keep = max(len(seeds) // prompts.size, 1)

    def settings_of(index: int | None) -> dict[str, Any]:
        if index is None:
            label, prompt, seed = arguments.label, arguments.prompt, arguments.seed
        else:
            row, seed = index // keep, int(seeds[index])
            label = int(prompts.conditions["label"][row]) if model.classes else None
            prompt = prompts.captions[row] if prompts.captions else None
            if "number" in prompts.conditions:
                common["sampler"] = common["sampler"] | {"number": float(prompts.conditions["number"][row])}
        return common | {"index": index, "seed": seed, "label": label, "prompt": prompt}

    return settings_of


def _write_arrays(
    out: Path, images: UInt8[np.ndarray, "N H W C"], seeds: np.ndarray, prompts: Prompts, model: GenerativeModel
) -> None:
    """Writes arrays, with a caption per image if the model is text-conditioned."""
    out.parent.mkdir(parents=True, exist_ok=True)
    captions = prompts.captions or []
    arrays = {"images": images, "seeds": seeds}
    arrays["labels"] = prompts.conditions["label"] if model.classes else np.full(len(seeds), -1, np.int32)
    if "number" in prompts.conditions:
        arrays["numbers"] = prompts.conditions["number"]
    if captions:
        arrays["captions"] = np.repeat(captions, len(images) // len(captions))
    with io.atomic_path(out) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _check_files(arguments: Arguments, out: Path) -> list[str]:
    """Returns the prompts of the command line; checks every file that it names before the run is loaded.

    Raises:
      UserError: a file cannot be read, or `out` cannot be written.
    """
    config = Workdir(required(arguments, "workdir")).read_config()
    if arguments.label is not None and (classes := image_spec(config).classes):
        check_label(arguments.label, classes)
    for name in ("classifier", "weak", "clip", "codec"):
        path = getattr(arguments, name)
        if path and not (name == "clip" and clip_checkpoint.is_published(path)):
            Workdir(path).read_config()
    edits.check_files(arguments)
    if out.suffix in (".jpg", ".jpeg") and image_spec(config).channels == 4:
        raise UserError(f"--out={out}: JPEG does not support the 4 channels of the run's images; use .png or .webp")
    check_writable("out", out)
    if arguments.prompt and arguments.prompts:
        raise UserError("--prompts: is not supported with --prompt; pass one of --prompt=TEXT and --prompts=FILE")
    for name in ("prompt", "base_prompt"):
        if getattr(arguments, name):
            check_text(f"--{name}", getattr(arguments, name))
    if arguments.prompt:
        return [arguments.prompt]
    return read_file(arguments.prompts) if arguments.prompts else []


def _note_rounding(arguments: Arguments, model: GenerativeModel, settings: SamplingSettings) -> None:
    """Prints a note if --strength is rounded to whole steps, or --keep_fraction to rows of tokens."""
    first = settings.stages[model.main_stage] if is_pipeline(model) else settings
    if arguments.strength is not None:
        steps = first.num_steps
        taken = steps - int(first["begin"])
        if abs(taken - arguments.strength * steps) > 1e-6:
            note(f"--strength={arguments.strength:g}: rounded to whole steps, the last {taken} of {steps}")
    if arguments.initial_image:
        note(f"--initial_image={arguments.initial_image}: keeps the first {first['rows']} rows of tokens")


def _layout(arguments: Arguments, trained: Run, model: GenerativeModel, prompts: Prompts, keep: int) -> Layout:
    """Returns the layout of the grid: a row per prompt or a column per class, and a title for one prompt or class."""
    names = dataset_info(trained.config).class_names
    if is_text_conditioned(model):
        captions = prompts.captions or []
        layout = Layout(keep, captions) if prompts.size > 1 else Layout(title=captions[0])
    elif numbers := _numbers(arguments):
        layout = Layout(len(numbers), column_labels=[f"{value:g}" for value in numbers])
    elif arguments.label is None:
        layout = image_grids.class_layout(model.classes, prompts.size, names)
    else:
        name = image_grids.class_label(arguments.label, model.classes, names)
        layout = Layout(title=f"class {name.removeprefix('class ')}")
    return layout._replace(title="; ".join(filter(None, [layout.title, edits.description(arguments)])))


def _numbers(arguments: Arguments) -> list[float]:
    """Returns the values of --number if there are several."""
    return take_numbers(arguments.as_dict())[1]


def _overrides(arguments: Arguments) -> dict[str, Any]:
    """Returns the sampling settings of the command line."""
    flags = {name: getattr(arguments, name) for name in ("strength", "resample_steps", "keep_fraction")}
    if arguments.initial_image and arguments.keep_fraction is None:
        flags["keep_fraction"] = 0.5
    return single_setting(take_numbers(arguments.as_dict())[0]) | {
        name: value for name, value in flags.items() if value is not None
    }
