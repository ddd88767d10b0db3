"""What `sample` makes of pictures that it is given: edits, in-painting, ways between two, and unCLIP's manipulations.

Each becomes the condition of samples: the latents they start from, the embedding that is decoded, the picture itself.
"""

import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from diffjax.cli.flags import Arguments
from diffjax.cli.settings import one_cell
from diffjax.data import image_files
from diffjax.diffusion import sampling
from diffjax.errors import UserError, note
from diffjax.inference.prompts import Prompts, note_cut
from diffjax.models.diffusion.sampling_settings import encode, latents
from diffjax.models.pixels import to_unit_range
from diffjax.runs.loading import Run, open_source
from diffjax.typing import Embeddings, ImageSpec, Manipulations

_REGIONS = ("left", "right", "top", "bottom", "center")  # masks that have a name
_INDEX = re.compile("[^:]+:[0-9]+")  # an image of the data set, as test:7
_FARTHEST = 0.5  # part of the way from a picture's embedding to a text's that text diffs go: unCLIP, section 3.3


class Sheet(NamedTuple):
    """What is drawn, and how it is laid out."""

    asked: Prompts
    seeds: np.ndarray
    columns: int | None


def check_files(arguments: Arguments) -> None:
    """Raises UserError where an image or a mask of the command line is no file, before the run is opened."""
    for name in ("image", "initial_image", "mask"):
        text = getattr(arguments, name)
        pair = name == "image" and arguments.interpolate and not arguments.base_prompt
        for part in [] if text is None else text.split(",") if pair else [text]:
            if part in _REGIONS if name == "mask" else _INDEX.fullmatch(part):
                continue
            if not Path(part).is_file():
                problem = "is a folder" if Path(part).is_dir() else "there is no such file"
                others = ", ".join(_REGIONS) if name == "mask" else "SPLIT:INDEX of the data set, as test:7"
                raise UserError(f"--{name}={part}: {problem}; name an image file, or {others}")


def check(arguments: Arguments, trained: Run) -> None:
    """Raises UserError for flags that do not go together, or not with the run."""
    system = trained.system
    chain = bool(system.stages)
    if (arguments.image or arguments.interpolate) and system.model is None and not chain:
        raise UserError(f"--image and --interpolate are of diffusion models, not of system={trained.config.system}")
    if arguments.initial_image and trained.config.system != "prior":
        raise UserError(f"--initial_image is completed code by code, by a prior, not by system={trained.config.system}")
    if arguments.strength is not None and (not arguments.image or arguments.mask or arguments.interpolate):
        raise UserError("--strength is of an --image to be edited, without --mask or --interpolate")
    if arguments.mask and (not arguments.image or arguments.interpolate):
        raise UserError("--mask needs the --image that it is of, and no --interpolate")
    if arguments.repeats is not None and (arguments.strength is not None or arguments.interpolate):
        raise UserError("--repeats is of samples and of --mask, not of --strength or --interpolate")
    if arguments.kept is not None and not arguments.initial_image:
        raise UserError("--kept is of an --initial_image to be completed")
    manipulated = [name for name in ("components", "base_prompt") if getattr(arguments, name)]
    if (manipulated or arguments.invert) and system.manipulate is None:
        raise UserError(
            f"--{(*manipulated, 'invert')[0]} is of embeddings of pictures, which system={trained.config.system} has "
            "not: it is unclip's"
        )
    if (manipulated or arguments.invert) and not arguments.image:
        raise UserError(f"--{(*manipulated, 'invert')[0]} needs the --image that it is of")
    if arguments.base_prompt and not (arguments.prompt and arguments.interpolate):
        raise UserError("--base_prompt, what the --image shows, needs --prompt, what it is to show, and --interpolate")
    if chain and arguments.interpolate and not (system.manipulate and arguments.image):
        raise UserError("of a chain --interpolate goes between pictures: it is unclip's, and needs --image")
    varies = system.manipulate is not None or bool(system.takes)
    if arguments.image and not (arguments.mask or arguments.interpolate or arguments.strength is not None or varies):
        raise UserError("--image needs --strength (to edit it), --mask (to paint in it) or --interpolate")
    if system.takes and not arguments.image:
        raise UserError(
            f"{trained.workdir.path} is a stage, and draws a picture again: give --image=FILE, or sample the chain"
        )
    if arguments.interpolate and arguments.best_of:
        raise UserError(f"--best_of={arguments.best_of}: is not supported with --interpolate; leave one of both out")
    if arguments.clip and not arguments.best_of:
        raise UserError(f"--clip={arguments.clip}: ranks the samples of --best_of; pass --best_of=N too")
    if arguments.mask or arguments.strength is not None:
        for name in ("components", "base_prompt", "invert"):
            if getattr(arguments, name):
                raise UserError(f"--{name} has no effect with --mask or --strength: leave it out")
    if varied(arguments, trained):
        _check_redrawn(arguments, trained)


def _check_redrawn(arguments: Arguments, trained: Run) -> None:
    """Raises UserError for flags that have no effect where --image takes the place of a prompt."""
    of_prompts = ["best_of", "prompts", "clip"] + ["prior", "candidates"] * (trained.system.manipulate is not None)
    for name in of_prompts:
        if getattr(arguments, name):
            raise UserError(f"--{name}: is not supported with an --image that is drawn again; leave it out")
    for setting in one_cell(arguments) if trained.system.manipulate else ():
        if setting.startswith(("prior:", "ar_prior:")):
            raise UserError(f"{setting}: has no effect, as --image takes the place of a prior; leave it out")
    if arguments.interpolate and not trained.system.manipulate:
        raise UserError("--interpolate: is not supported for a stage that draws an --image again; leave it out")
    if arguments.label is not None and not trained.system.classes:
        raise UserError(f"--label={arguments.label}: {trained.workdir.path} was trained without labels; leave it out")
    # What decides how the picture is drawn again, and what then has no effect.
    ways = {
        "components": ("base_prompt", "interpolate", "invert", "prompt"),
        "base_prompt": ("invert", "repeats"),
        "interpolate": ("invert", "repeats") + ("prompt",) * (not arguments.base_prompt),
        "invert": ("repeats",),
    }
    for way, others in ways.items():
        for name in others:
            if getattr(arguments, way) and getattr(arguments, name):
                raise UserError(f"--{name} has no effect with --{way}: leave one of both out")


def varied(arguments: Arguments, trained: Run) -> bool:
    """Whether a picture stands in the place of a prompt."""
    edits = arguments.mask or arguments.strength is not None
    redrawn = trained.system.manipulate is not None or bool(trained.system.takes)
    return bool(arguments.image) and not edits and redrawn


def edited(arguments: Arguments, trained: Run, asked: Prompts) -> Prompts:
    """With the image to be edited, completed or painted in, and the mask of what is kept of it."""
    if not (image := arguments.image or arguments.initial_image):
        return asked
    count = len(asked.condition["label"])
    given = {"image": picture(image, trained)}
    if trained.system.takes:  # what the stage is told of the picture is made of it too
        given["original"] = given["image"]
    if arguments.mask:
        given["mask"] = 1.0 - _mask(arguments.mask, trained.spec)
    edits = {name: np.repeat(value[None], count, axis=0) for name, value in given.items()}
    return asked._replace(condition={**asked.condition, **edits})


def between_latents(arguments: Arguments, trained: Run, plan, asked: Prompts) -> Sheet:
    """Every picture between two latents, row by row: of two seeds, or of two pictures by DDIM."""
    seeds, system = arguments.seed + np.arange(arguments.num), trained.system

    @jax.jit
    def ends(variables, keys, condition, plan):
        return latents(system.model(variables, condition), keys, plan)

    @jax.jit
    def encoded(variables, images, condition, plan):
        return encode(system.model(variables, condition), images, plan)

    def at(places):
        return {name: values[places] for name, values in asked.condition.items()}

    if asked.captions:
        _check_rows(arguments, len(asked.captions))
    own = np.minimum(np.arange(len(seeds)), len(asked.condition["label"]) - 1)  # a prompt is that of every row
    if arguments.image:
        pair = _pair(arguments, trained)
        _note_num(arguments, "there is one row between two images")
        found = np.asarray(encoded(trained.variables, pair, at(own[[0, 0]]), plan))
        start, end, seeds, own = found[:1], found[1:], seeds[:1], own[:1]
    else:
        keys = jax.vmap(jax.random.key)(np.append(seeds, seeds[-1] + 1).astype(np.uint32))
        found = np.asarray(ends(trained.variables, keys, at(np.append(own, own[-1])), plan))
        start, end = found[:-1], found[1:]
    count = arguments.interpolate
    condition = at(own.repeat(count)) | {"latent": _slerp(start, end, np.linspace(0, 1, count))}
    captions = asked.captions and [asked.captions[i] for i in own.repeat(count)]
    return Sheet(Prompts(condition, captions), seeds.repeat(count), count)


def manipulated(arguments: Arguments, trained: Run, plan) -> Sheet:
    """unCLIP's manipulations of --image (Ramesh et al. 2022, section 3), a row of pictures."""
    tools, variables = trained.system.manipulate, trained.variables
    if texts := [text for text in (arguments.prompt, arguments.base_prompt) if text]:
        note_cut(trained.tokenizer, trained.system.text.length, texts)
    if arguments.interpolate and not arguments.base_prompt:  # from one picture to another: figure 4
        images = _pair(arguments, trained)
        z = np.asarray(tools.embed(variables, images))
        x = _inverted(tools, variables, images, z, plan)
        way = np.linspace(0, 1, arguments.interpolate)
        return _row(arguments, _slerp(z[:1], z[1:], way), _slerp(x[:1], x[1:], way))
    images = picture(arguments.image, trained)[None]
    z = np.asarray(tools.embed(variables, images))
    if arguments.base_prompt:  # a text diff: figure 5
        said = trained.tokenizer.encode([arguments.prompt, arguments.base_prompt], trained.system.text.length)
        wanted, shown = np.asarray(tools.embed_texts(variables, said))
        difference = (wanted - shown)[None]
        norm = np.linalg.norm(difference)
        if norm < 1e-6:
            raise UserError("--prompt and --base_prompt say the same: there is no difference to go along")
        x, way = _inverted(tools, variables, images, z, plan), np.linspace(0, _FARTHEST, arguments.interpolate)
        return _row(arguments, _slerp(z, difference / norm, way), x.repeat(len(way), 0))
    if arguments.components:  # what is left in the first principal components: figure 7
        if tools.project is None:
            raise UserError("--components is of a chain with a stage pca: set config.pca")
        counts = _counts(arguments.components, z.shape[-1])
        found = np.concatenate([np.asarray(tools.project(variables, z, count)) for count in counts])
        return _row(arguments, found, None)
    embeddings = z.repeat(arguments.num, 0)  # variations: figure 3
    x = _inverted(tools, variables, images, z, plan).repeat(arguments.num, 0) if arguments.invert else None
    seeds = arguments.seed + np.arange(arguments.num)
    asked = _asked(embeddings, x)
    if arguments.prompt:
        tokens = trained.tokenizer.encode([arguments.prompt] * arguments.num, trained.system.text.length)
        asked.condition["tokens"] = tokens
    return Sheet(asked, seeds, None)


def again(arguments: Arguments, trained: Run) -> Sheet:
    """A picture drawn again by one stage of a chain, with the --prompt where it reads text and one is given."""
    image = np.repeat(picture(arguments.image, trained)[None], arguments.num, axis=0)
    labels = np.full(arguments.num, _label(arguments, trained), np.int32)
    condition, captions = {"label": labels, "original": image}, None
    if arguments.prompt and not trained.system.text:
        raise UserError(f"--prompt: {trained.workdir.path} does not read text; leave it out")
    if trained.system.text and arguments.prompt:
        note_cut(trained.tokenizer, trained.system.text.length, [arguments.prompt])
        captions = [arguments.prompt] * arguments.num
        condition["tokens"] = trained.tokenizer.encode(captions, trained.system.text.length)
    return Sheet(Prompts(condition, captions), arguments.seed + np.arange(arguments.num), None)


def _label(arguments: Arguments, trained: Run) -> int:
    """Returns the class that a picture is drawn again with: --label, or that of the image of the data set.

    Raises UserError where neither is known, and for a class that the run does not have.
    """
    if not trained.system.classes:
        return 0
    if arguments.label is not None:
        check_label(arguments.label, trained.system.classes)
        return arguments.label
    if not _INDEX.fullmatch(arguments.image):
        raise UserError("--label is missing: the run is conditioned on labels, and an image file has none")
    split, _, index = arguments.image.rpartition(":")
    return int(open_source(trained.config, split).__getitems__([int(index)])[0]["label"])


def check_label(label: int, classes: int) -> None:
    """Raises UserError for a label that a run of so many classes does not have."""
    if not 0 <= label < classes:
        limit = f"has the classes 0 to {classes - 1}" if classes else "was trained without labels"
        raise UserError(f"--label={label}: this run {limit}")


def _note_num(arguments: Arguments, why: str) -> None:
    if "num" in arguments.given:
        note(f"--num={arguments.num}: has no effect, as {why}")


def _check_rows(arguments: Arguments, prompts: int) -> None:
    """Refuses prompts without a row of their own, and prints a note where the last one has several."""
    rows = 1 if arguments.image else arguments.num
    if prompts > rows:
        raise UserError(f"--prompts={arguments.prompts}: {prompts} prompts for {rows} rows; pass --num={prompts}")
    if 1 < prompts < rows:
        note(f"--num={rows}: there are {prompts} prompts, and the last is that of the {rows - prompts} rows left")


def picture(text: str, trained: Run) -> Float[np.ndarray, "H W C"]:
    """The picture of a file or of the run's data set, [-1, 1]."""
    split, _, index = text.rpartition(":")
    if _INDEX.fullmatch(text):
        source = open_source(trained.config, split)
        if int(index) >= len(source):
            raise UserError(f"--image={text}: {split} has {len(source)} images")
        return np.asarray(to_unit_range(source.__getitems__([int(index)])[0]["image"]))
    return np.asarray(to_unit_range(image_files.load(text, trained.spec.size, trained.spec.channels)))


def _pair(arguments: Arguments, trained: Run) -> Float[np.ndarray, "2 H W C"]:
    files = arguments.image.split(",")
    if len(files) != 2:
        raise UserError(f"--interpolate goes between two images, --image=A,B, not {len(files)}")
    return np.stack([picture(file, trained) for file in files])


def _inverted(tools: Manipulations, variables, images, embeddings: Embeddings, plan) -> np.ndarray:
    """The decoder's x_T of pictures."""
    return np.asarray(jax.jit(tools.invert)(variables, images, {"image_embedding": embeddings}, plan))


def _row(arguments: Arguments, embeddings: Embeddings, x: np.ndarray | None) -> Sheet:
    """All from one seed."""
    _note_num(arguments, "one row is drawn")
    return Sheet(_asked(embeddings, x), np.full(len(embeddings), arguments.seed), len(embeddings))


def _asked(embeddings: Embeddings, x: np.ndarray | None) -> Prompts:
    condition = {"label": np.zeros(len(embeddings), np.int32), "image_embedding": embeddings}
    return Prompts(condition | ({} if x is None else {"latent": x}), None)


def _slerp(a: np.ndarray, b: np.ndarray, way: np.ndarray) -> np.ndarray:
    """All places of a way, from every `a` to its `b`."""
    weights = np.tile(way.astype(np.float32), len(a))
    return np.asarray(sampling.slerp(a.repeat(len(way), 0), b.repeat(len(way), 0), weights))


def _counts(text: str, most: int) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--components={text}: expected whole numbers separated by commas") from error
    if not all(1 <= count <= most for count in counts):
        raise UserError(f"--components={text}: from 1 to the {most} values of an embedding")
    return counts


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
    if text in regions:
        mask = np.zeros((spec.size, spec.size), bool)
        mask[regions[text]] = True
    else:
        mask = image_files.load_mask(text, spec.size)
    return np.repeat(mask[..., None].astype(np.float32), spec.channels, axis=-1)
