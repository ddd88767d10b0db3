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
  --image=FILE --measure="blur(sigma=2)" --measure_noise=0.05 --inverse=pigdm
                                    restores the image from a measurement: blur, downsample(factor=4), grey, mask (what
                                    --mask leaves) or a .npy file of a matrix. The grid starts with the image and the
                                    measurement
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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from tqdm import tqdm

from diffjax import io
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
from diffjax.cli.settings import define_settings, load_run
from diffjax.diffusion import inverse_problems, measurements
from diffjax.errors import UserError
from diffjax.inference import image_grids
from diffjax.inference.sample_flags import SampleFlags
from diffjax.inference.sample_requests import RunSampler, Samples, check_files
from diffjax.registry import choices
from diffjax.runs.config_files import to_json
from diffjax.runs.datasets import image_spec
from diffjax.runs.workdir import Workdir

_OUTPUTS = (*image_grids.FORMATS, ".npz")


def define(flags: Flags) -> None:
    define_workdir(flags, url=True)
    define_sampling(flags)
    define_settings(flags)
    for name, text in {
        "prompt": "caption of the images",
        "prompts": "UTF-8 file of prompts, one per line",
        "negative_prompt": "caption that classifier-free guidance moves away from, instead of no caption",
        "clip": "run or folder of the CLIP that --best_of ranks by",
        "codec": "run of another autoencoder of the same latents, such as a tiny one, to encode and decode with",
        "initial_image": "image file, or SPLIT:INDEX of the data set, to complete from its top rows",
        "out": "file to write: .png, .jpg or .webp for a grid, .npz for arrays; or DIR/ for one PNG per sample "
        "(default: the next samples/sample_NUMBER.png of the run)",
        "from": "PNG of `sample`, to sample again with its settings",
        "image": "image file, or SPLIT:INDEX of the data set, to edit or inpaint; or two, A,B, to interpolate",
        "base_prompt": "caption of --image, for the text difference to --prompt",
        "components": "numbers of principal components of --image's embedding, separated by commas",
        "measure": f"what is known of --image: {' | '.join(choices(measurements))}, with options as in blur(sigma=2); "
        "or a .npy file of a matrix",
        "inverse": f"method that restores the measurement: {' | '.join(choices(inverse_problems))} (default: pigdm)",
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
    absl_flags.DEFINE_float(
        "measure_noise", None, "standard deviation of the measurement's noise, of pixels in [-1, 1]", flag_values=flags
    )
    absl_flags.DEFINE_float("strength", None, "fraction of the process that --image is noised for", flag_values=flags)


def parse_flags(flags: Sequence[str]) -> Arguments:
    """Returns the parsed flags of this verb, "--name=value" each. Raises UserError for an invalid one."""
    declared = Flags()
    define(declared)
    return parse(declared, ["sample", *flags])


def run(arguments: Arguments) -> int:
    index = None
    if getattr(arguments, "from"):
        arguments, index = _restore(arguments)
    path, (out, to_folder) = required(arguments, "workdir"), _output(arguments)
    flags = SampleFlags(arguments.as_dict(), arguments.given_flags)
    captions = check_files(flags)
    _check_output(path, out / "00000.png" if to_folder else out)
    trained = load_run(path, arguments, arguments.ema_length)
    sampler = RunSampler(trained, flags.values)
    request = sampler.prepare(flags, captions)
    with tqdm(total=request.total, unit="image") as bar:
        samples = sampler.sample(request, progress=bar.update)
    settings_of = sampler.recorder(request, samples.seeds, shlex.join(sys.argv))
    images, written = samples.images, f"{len(samples.images)} samples"
    if to_folder:
        for i, image in enumerate(images):
            image_grids.save(out / f"{i:05d}.png", image, settings_of(i))
        for name, image in request.shown.items():
            image_grids.save(out / f"{name}.png", image)
    elif index is not None and index < len(images) and out.suffix != ".npz":
        image_grids.save(out, images[index], settings_of(index))
        written = f"sample {index} of {len(images)}"
    elif out.suffix != ".npz":
        tiles = np.stack([*request.shown.values(), *images])
        image_grids.save(out, image_grids.grid(tiles, samples.layout), settings_of(None))
    else:
        _write_arrays(out, samples, has_labels=bool(sampler.model.classes))
    print(written + f" of step {trained.step}" * bool(trained.step) + f" in {out}")
    steps, deep_steps = request.settings.num_steps, request.settings.num_deep_steps
    if deep_steps < steps and not flags.image:  # edits may take some of the steps only
        print(f"deep features of the network: computed in {deep_steps} of {steps} steps")
    if samples.evaluations is not None:
        counts = samples.evaluations
        counted = f"{counts.min()} to {counts.max()}", f"per sample, {counts.mean():.1f} on average"
        if request.settings.caches_by_change:
            print(f"deep features of the network: computed in {counted[0]} of {steps} steps {counted[1]}")
        else:
            print(f"{counted[0]} evaluations of the denoiser {counted[1]}")
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
        merged = parse_flags([f"--{name}={value}" for name, value in flags.items()])
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


def _write_arrays(out: Path, samples: Samples, *, has_labels: bool) -> None:
    """Writes arrays, with a caption per image if the model is text-conditioned."""
    out.parent.mkdir(parents=True, exist_ok=True)
    conditions, count = samples.prompts.conditions, len(samples.images)
    arrays = {"images": samples.images, "seeds": samples.seeds}
    arrays["labels"] = conditions["label"] if has_labels else np.full(count, -1, np.int32)
    if "number" in conditions:
        arrays["numbers"] = conditions["number"]
    if captions := samples.prompts.captions:
        arrays["captions"] = np.repeat(captions, count // len(captions))
    with io.atomic_path(out) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _check_output(workdir: str, out: Path) -> None:
    """Raises UserError if `out` cannot be written, or its format does not have the channels of the run's images."""
    if out.suffix in (".jpg", ".jpeg") and image_spec(Workdir(workdir).read_config()).channels == 4:
        raise UserError(f"--out={out}: JPEG does not support the 4 channels of the run's images; use .png or .webp")
    check_writable("out", out)
