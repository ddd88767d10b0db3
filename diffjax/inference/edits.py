"""Conditions of `sample` from images: edits, inpainting, interpolation, and unCLIP's manipulations.

Each image becomes a condition of samples: their initial latents, the embedding that is decoded, or the image itself.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, UInt8

from diffjax.data import image_files
from diffjax.data.records import MissingSplit
from diffjax.diffusion import sampling
from diffjax.diffusion.measurements import Operator
from diffjax.errors import UserError, note
from diffjax.inference.image_grids import Layout
from diffjax.inference.prompts import Prompts, check_label, encode_captions
from diffjax.inference.sample_flags import SampleFlags
from diffjax.models.base import ImageManipulation
from diffjax.models.capabilities import is_diffusion, is_text_conditioned, is_upsampling_stage, manipulates_images
from diffjax.models.diffusion import inverse_settings
from diffjax.models.images import to_grey_levels, to_unit_range
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.progress import announced_jit
from diffjax.runs.datasets import open_dataset
from diffjax.runs.loading import Run
from diffjax.typing import Embeddings, ImageSpec, Variables

_REGIONS = ("left", "right", "top", "bottom", "center")  # named masks
_INDEX = re.compile(r"[^:\[]+(\[[^\]]*\])?:[0-9]+")  # an image of the data set, such as test:7 or train[90%:]:7
_MAX_TEXT_DIFF = 0.5  # fraction of the path from the image's embedding to the text difference: unCLIP, section 3.3


class SampleGrid(NamedTuple):
    """Samples and their layout.

    Attributes:
      prompts: conditions of the samples.
      seeds: one integer per sample; None: those that follow --seed.
      layout: rows, columns and their labels.
    """

    prompts: Prompts
    seeds: np.ndarray | None
    layout: Layout


def check_files(flags: SampleFlags) -> None:
    """Raises UserError if an image or mask of the command line is not a file; does not load the run."""
    for name in ("image", "initial_image", "mask"):
        text = getattr(flags, name)
        is_pair = name == "image" and flags.interpolate and not flags.base_prompt
        for part in [] if text is None else text.split(",") if is_pair else [text]:
            if part in _REGIONS if name == "mask" else _INDEX.fullmatch(part):
                continue
            if not Path(part).is_file():
                problem = "is a folder" if Path(part).is_dir() else "there is no such file"
                others = ", ".join(_REGIONS) if name == "mask" else "SPLIT:INDEX of the data set, such as test:7"
                raise UserError(f"--{name}={part}: {problem}; name an image file, or {others}")

    if flags.measure and is_matrix(flags.measure) and not Path(flags.measure).is_file():
        raise UserError(f"--measure={flags.measure}: there is no such file; name a .npy file, or an operator")


def is_file(name: str, value: str) -> bool:
    """Returns whether the value of --image, --initial_image or --mask names a file, not an image of the data set."""
    return not (value in _REGIONS if name == "mask" else all(map(_INDEX.fullmatch, value.split(","))))


def with_image(flags: SampleFlags, trained: Run, prompts: Prompts) -> Prompts:
    """Adds --image or --initial_image, and the mask of the region to keep, to the conditions."""
    if not (file := flags.image or flags.initial_image):
        return prompts
    image = load_image(file, trained)
    edits = {"image": image}
    if is_upsampling_stage(trained.system):
        edits["original"] = image  # the stage's own conditions are computed from the image as well
    if flags.mask:
        edits["mask"] = 1.0 - load_mask(flags.mask, trained.spec)
    repeated = {name: np.repeat(value[None], prompts.size, axis=0) for name, value in edits.items()}
    return prompts._replace(conditions={**prompts.conditions, **repeated})


class Measured(NamedTuple):
    """A measurement of --image.

    Attributes:
      settings: sampling settings, with the array of the operator.
      prompts: conditions, with the measurement for each sample.
      shown: the image and the measurement as images, by name.
    """

    settings: SamplingSettings
    prompts: Prompts
    shown: dict[str, UInt8[np.ndarray, "H W C"]]


def is_matrix(measure: str) -> bool:
    """Returns whether the value of --measure is a file of a matrix."""
    return measure.endswith(".npy")


def measure(flags: SampleFlags, trained: Run, settings: SamplingSettings, prompts: Prompts) -> Measured:
    """Computes the measurement of --image, with noise of --seed.

    Raises:
      UserError: the image or the matrix cannot be read, or the matrix has another number of columns.
    """
    image, text = jnp.asarray(load_image(flags.image, trained)), settings["measure"]
    array = None
    if is_matrix(flags.measure):
        array = jnp.asarray(_load_matrix(flags.measure, image.size))
    elif flags.mask:
        array = jnp.asarray(np.flatnonzero(load_mask(flags.mask, trained.spec) < 0.5), jnp.int32)
        if not array.size:
            raise UserError(f"--mask={flags.mask}: leaves no pixel that is known; use another one")
    elif inverse_settings.needs_array(text):
        needed = "--mask, the region that is not known" if text.startswith("mask") else "a file, --measure=FILE.npy"
        raise UserError(f"--measure={text}: requires {needed}; add it")
    operator = inverse_settings.bind_operator(text, array)
    y = np.asarray(operator(image))
    y = y + float(settings["measure_noise"]) * np.random.default_rng(flags.seed).normal(size=y.shape).astype(y.dtype)
    repeated = np.repeat(y[None], prompts.size, axis=0)
    shown = {"image": image, "measurement": _as_image(y, operator, image)}
    return Measured(
        dataclasses.replace(settings, arrays={} if array is None else {"operator": array}),
        prompts._replace(conditions={**prompts.conditions, "measurement": repeated}),
        {name: np.asarray(to_grey_levels(value[None]))[0] for name, value in shown.items()},
    )


def _as_image(y: np.ndarray, operator: Operator, image: Array) -> Array:
    """Returns a measurement in the shape of the image: enlarged, or the image of least norm with that measurement."""
    if y.ndim == 3:
        factors = [there // here for there, here in zip(image.shape, y.shape, strict=True)]
        return jnp.asarray(functools.reduce(lambda y, axis: y.repeat(factors[axis], axis), range(3), y))
    transpose = jax.linear_transpose(operator, image)
    solve = jax.scipy.sparse.linalg.cg
    return transpose(solve(lambda v: operator(transpose(v)[0]), jnp.asarray(y), maxiter=1000)[0])[0]


def _load_matrix(path: str, columns: int) -> np.ndarray:
    """Returns the matrix [M, columns] of a file, float32. Raises UserError if it is not one."""
    try:
        matrix = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--measure={path}: is not a .npy file that can be read ({error})") from error
    if matrix.ndim != 2 or matrix.shape[1] != columns or matrix.dtype.kind not in "fiub" or not matrix.size:
        raise UserError(
            f"--measure={path}: has the shape {list(matrix.shape)} of {matrix.dtype}; it must be a matrix of numbers "
            f"with {columns} columns, the values of an image"
        )
    return matrix.astype(np.float32)


def description(flags: SampleFlags) -> str:
    """Returns what is done to --image or --initial_image, for the title of the samples; "" without an edit."""
    if flags.measure:
        return f"{_name(flags.image)}, its measurement by {_name(flags.measure)}, and restorations"
    if flags.initial_image:
        return f"completions of {_name(flags.initial_image)}"
    if flags.mask:
        return f"{_name(flags.image)}, inpainted by the mask {_name(flags.mask)}"
    if flags.strength is not None:
        return f"{_name(flags.image)}, edited with strength {flags.strength:g}"
    return ""


def interpolate_latents(flags: SampleFlags, trained: Run, settings: Any, prompts: Prompts) -> SampleGrid:
    """Interpolates latents, one row per pair: between successive seeds, or between two images encoded by DDIM."""
    seeds, model = flags.seed + np.arange(flags.num), trained.system
    assert is_diffusion(model)

    @jax.jit
    def initial_latents(variables, keys, conditions, settings):
        return model.bind(variables, conditions).initial_latents(keys, settings)

    @announced_jit("the inversion")
    def encoded(variables, images, conditions, settings):
        return model.bind(variables, conditions).invert(images, settings)

    if prompts.captions:
        _check_rows(flags, len(prompts.captions))
    rows = np.minimum(np.arange(len(seeds)), prompts.size - 1)  # prompt of each row; one prompt is for all rows
    if flags.image:
        images = _load_pair(flags, trained)
        _note_num(flags, "there is one row between two images")
        ends = np.asarray(encoded(trained.variables, images, _select(prompts.conditions, rows[[0, 0]]), settings))
        start, end, seeds, rows = ends[:1], ends[1:], seeds[:1], rows[:1]
    else:
        keys = jax.vmap(jax.random.key)(np.append(seeds, seeds[-1] + 1).astype(np.uint32))
        conditions = _select(prompts.conditions, np.append(rows, rows[-1]))
        ends = np.asarray(initial_latents(trained.variables, keys, conditions, settings))
        start, end = ends[:-1], ends[1:]
    count = flags.interpolate
    indices = rows.repeat(count)
    conditions = _select(prompts.conditions, indices) | {"latent": _slerp(start, end, np.linspace(0, 1, count))}
    captions = prompts.captions and [prompts.captions[i] for i in indices]
    pair = _pair_names(flags) if flags.image else ""
    labels = [pair or f"seed {seed} to {seed + 1}" for seed in seeds]
    if prompts.captions:
        labels = [f"{label}: {prompts.captions[i]}" for label, i in zip(labels, rows, strict=True)]
    layout = Layout(count, labels, _fractions(count), "latents, interpolated from left to right")
    return SampleGrid(Prompts(conditions, captions), seeds.repeat(count), layout)


def variations(flags: SampleFlags, trained: Run, settings: Any) -> SampleGrid:
    """Returns samples conditioned on --image, of an unCLIP pipeline or of one stage."""
    manipulation = trained.system
    if not manipulates_images(manipulation):
        return _stage_variations(flags, trained)
    if flags.base_prompt:
        return _text_diff(flags, trained, manipulation, settings)
    if flags.interpolate:
        return _interpolate_images(flags, trained, manipulation, settings)
    if flags.components:
        return _principal_components(flags, trained, manipulation)
    return _image_variations(flags, trained, manipulation, settings)


def _interpolate_images(flags: SampleFlags, trained: Run, manipulation: ImageManipulation, settings: Any) -> SampleGrid:
    """Reference: Ramesh et al. 2022, figure 4."""
    images = _load_pair(flags, trained)
    z = np.asarray(manipulation.embed(trained.variables, jnp.asarray(images)))
    x = _inverted(manipulation, trained.variables, images, z, settings)
    positions = np.linspace(0, 1, flags.interpolate)
    layout = Layout(
        len(positions),
        [_pair_names(flags)],
        _fractions(len(positions)),
        "image embeddings and latents, interpolated from left to right",
    )
    return _one_row(flags, _slerp(z[:1], z[1:], positions), _slerp(x[:1], x[1:], positions), layout)


def _text_diff(flags: SampleFlags, trained: Run, manipulation: ImageManipulation, settings: Any) -> SampleGrid:
    """Reference: Ramesh et al. 2022, figure 5."""
    images = load_image(flags.image, trained)[None]
    z = np.asarray(manipulation.embed(trained.variables, jnp.asarray(images)))
    tokens = encode_captions(trained, [flags.prompt, flags.base_prompt])
    target, base = np.asarray(manipulation.embed_texts(trained.variables, jnp.asarray(tokens)))
    difference = (target - base)[None]
    norm = np.linalg.norm(difference)
    if norm < 1e-6:
        raise UserError("--base_prompt: has the same embedding as --prompt; change one of them")
    x = _inverted(manipulation, trained.variables, images, z, settings)
    positions = np.linspace(0, _MAX_TEXT_DIFF, flags.interpolate)
    layout = Layout(
        len(positions),
        [_name(flags.image)],
        [f"{round(position, 2):g}" for position in positions],
        f"moved along the difference of two texts, from '{flags.base_prompt}' to '{flags.prompt}'",
    )
    moved = _slerp(z, difference * (np.linalg.norm(z) / norm), positions)
    return _one_row(flags, moved, x.repeat(len(positions), 0), layout)


def _principal_components(flags: SampleFlags, trained: Run, manipulation: ImageManipulation) -> SampleGrid:
    """Reference: Ramesh et al. 2022, figure 7."""
    if manipulation.project is None:
        raise UserError("--components: requires a pipeline with a PCA stage; set config.pca")
    z = np.asarray(manipulation.embed(trained.variables, jnp.asarray(load_image(flags.image, trained))[None]))
    counts = _parse_components(flags.components, z.shape[-1])
    project, embeddings = manipulation.project, jnp.asarray(z)
    projections = [np.asarray(project(trained.variables, embeddings, jnp.asarray(count))) for count in counts]
    title = f"from the first principal components of the image embedding, of {z.shape[-1]}; columns: their number"
    layout = Layout(len(counts), [_name(flags.image)], list(map(str, counts)), title)
    return _one_row(flags, np.concatenate(projections), None, layout)


def _image_variations(flags: SampleFlags, trained: Run, manipulation: ImageManipulation, settings: Any) -> SampleGrid:
    """Reference: Ramesh et al. 2022, figure 3."""
    images, count = load_image(flags.image, trained)[None], flags.num
    z, x = np.asarray(manipulation.embed(trained.variables, jnp.asarray(images))), None
    if flags.invert:
        x = _inverted(manipulation, trained.variables, images, z, settings).repeat(count, 0)
    prompts = _embedding_prompts(z.repeat(count, 0), x)
    if flags.prompt:
        prompts.conditions["tokens"] = encode_captions(trained, [flags.prompt]).repeat(count, 0)
    return SampleGrid(prompts, flags.seed + np.arange(count), _variation_layout(flags))


def _stage_variations(flags: SampleFlags, trained: Run) -> SampleGrid:
    """Returns samples of a stage that is conditioned on --image, and on --prompt if it reads text."""
    image = np.repeat(load_image(flags.image, trained)[None], flags.num, axis=0)
    labels = np.full(flags.num, image_label(flags, trained), np.int32)
    conditions, captions = {"label": labels, "original": image}, None
    if is_text_conditioned(trained.system) and flags.prompt:
        captions = [flags.prompt] * flags.num
        conditions["tokens"] = encode_captions(trained, [flags.prompt]).repeat(flags.num, 0)
    layout = _variation_layout(flags)
    return SampleGrid(Prompts(conditions, captions), flags.seed + np.arange(flags.num), layout)


def image_label(flags: SampleFlags, trained: Run) -> int:
    """Returns the class of variations: --label, or the label of --image in the data set; 0 without classes.

    Raises:
      UserError: neither is known, or the run does not have the class.
    """
    if not trained.system.classes:
        return 0
    if flags.label is not None:
        check_label(flags.label, trained.system.classes)
        return flags.label
    if not _INDEX.fullmatch(flags.image):
        raise UserError("--label is missing: the run is conditioned on labels, and an image file does not have one")
    split, _, index = flags.image.rpartition(":")
    return int(open_dataset(trained.config, split).__getitems__([int(index)])[0]["label"])


def _note_num(flags: SampleFlags, reason: str) -> None:
    if "num" in flags.given_flags:
        note(f"--num={flags.num}: has no effect, because {reason}")


def _check_rows(flags: SampleFlags, num_prompts: int) -> None:
    """Raises UserError for more prompts than rows; prints a note if the last prompt is repeated."""
    rows = 1 if flags.image else flags.num
    if num_prompts > rows:
        raise UserError(f"--num={rows}: there are {num_prompts} prompts for {rows} rows; pass --num={num_prompts}")
    if 1 < num_prompts < rows:
        note(
            f"--num={rows}: there are {num_prompts} prompts, so the last {rows - num_prompts} rows repeat the last one"
        )


def load_image(text: str, trained: Run) -> Float[np.ndarray, "H W C"]:
    """Loads an image file, or the image SPLIT:INDEX of the run's data set; returns it in [-1, 1]."""
    split, _, index = text.rpartition(":")
    if _INDEX.fullmatch(text):
        try:
            source = open_dataset(trained.config, split)
        except MissingSplit as error:  # its message names data.split
            raise UserError(f"--image={text}: {str(error).partition(': ')[2]}") from error
        if int(index) >= len(source):
            raise UserError(f"--image={text}: must be below {split}:{len(source)}, the number of images")
        return np.asarray(to_unit_range(source.__getitems__([int(index)])[0]["image"]))
    image = image_files.load_image(text, trained.spec.size, trained.spec.channels)
    return np.asarray(to_unit_range(jnp.asarray(image)))


def load_mask(text: str, spec: ImageSpec) -> Float[np.ndarray, "H W C"]:
    """Returns the mask of an image file or a named region: 1 where the image is inpainted, 0 where it is kept."""
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


def _load_pair(flags: SampleFlags, trained: Run) -> Float[np.ndarray, "2 H W C"]:
    files = flags.image.split(",")
    if len(files) != 2:
        raise UserError(f"--image={flags.image}: --interpolate requires two images, --image=A,B, not {len(files)}")
    return np.stack([load_image(file, trained) for file in files])


def _inverted(
    manipulation: ImageManipulation,
    variables: Variables,
    images: np.ndarray,
    embeddings: np.ndarray,
    settings: Any,
) -> np.ndarray:
    """Returns the decoder's x_T for images."""
    invert = announced_jit("the inversion")(manipulation.invert)
    return np.asarray(invert(variables, images, {"image_embedding": embeddings}, settings))


def _one_row(flags: SampleFlags, embeddings: np.ndarray, x: np.ndarray | None, layout: Layout) -> SampleGrid:
    """Returns samples of one seed in one row."""
    _note_num(flags, "there is one row")
    return SampleGrid(_embedding_prompts(embeddings, x), np.full(len(embeddings), flags.seed), layout)


def _variation_layout(flags: SampleFlags) -> Layout:
    caption = f": {flags.prompt}" if flags.prompt else ""
    return Layout(title=f"variations of {_name(flags.image)}{caption}")


def _pair_names(flags: SampleFlags) -> str:
    """Returns the names of the two images of --image."""
    return " to ".join(map(_name, flags.image.split(",")))


def _name(image: str) -> str:
    """Returns an image of the command line without its folder."""
    return Path(image).name


def _fractions(count: int) -> list[str]:
    """Returns positions from 0 to 1 as labels of columns."""
    return [f"{round(position, 2):g}" for position in np.linspace(0, 1, count)]


def _embedding_prompts(embeddings: Embeddings | np.ndarray, x: np.ndarray | None) -> Prompts:
    conditions = {"label": np.zeros(len(embeddings), np.int32), "image_embedding": np.asarray(embeddings)}
    return Prompts(conditions | ({} if x is None else {"latent": x}), None)


def _select(conditions: Mapping[str, np.ndarray], indices: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[indices] for name, values in conditions.items()}


def _slerp(a: np.ndarray, b: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns spherical interpolations from each `a` to its `b`, at each position in [0, 1]."""
    weights = np.tile(positions.astype(np.float32), len(a))
    a, b = a.repeat(len(positions), 0), b.repeat(len(positions), 0)
    return np.asarray(sampling.slerp(jnp.asarray(a), jnp.asarray(b), jnp.asarray(weights)))


def _parse_components(text: str, dimension: int) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--components={text}: must be whole numbers separated by commas") from error
    if not all(1 <= count <= dimension for count in counts):
        raise UserError(f"--components={text}: must be from 1 to {dimension}, the dimension of an embedding")
    return counts
