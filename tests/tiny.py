"""The smallest config that still has every part: digits, a UNet of a few thousand parameters, ten timesteps."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.runs.config_files import flatten, load_file
from diffjax.typing import NO_TOKEN, Batch, Moment, Variables

ROOT = Path(__file__).parent.parent

OVERRIDES = {
    "model.channels": 8,
    "model.norm_groups": 4,
    "model.norm_min_channels": 4,  # so 2 groups at the first level
    "model.multipliers": (1, 2),
    "model.attention_resolutions": (4,),
    "diffusion.timesteps": 20,
    "train.steps": 4,
    "train.batch_size": 16,
    "train.warmup_steps": 1,
    "train.log_every": 1,
    "train.sample_every": 0,
    "train.sample_count": 10,
    "train.checkpoint_every": 2,
    "train.skip_limit": 0,
    "sampler.steps": 4,
}
AUTOENCODERS = {
    "model.residual_channels": 8,
    "model.blocks": 1,
    "model.groups": 2,
    "model.latent_channels": 4,
    "model.z_channels": 8,
    "codes.size": 8,
    "adversarial.channels": 8,
}
PRIORS = {
    "model.features": 8,
    "model.layers": 2,
    "model.width": 16,
    "model.heads": 2,
    "model.dropout": 0.0,
}
GAMES = {"model.latent": 8, "discriminator.channels": 8, "mapping.latent": 8, "mapping.width": 8}
OVERRIDES_OF = {  # systems
    "vae": AUTOENCODERS,
    "vqvae": AUTOENCODERS,
    "dvae": AUTOENCODERS,
    "prior": PRIORS,
    "clip": {
        "model.dimensions": 12,
        "image_encoder.width": 16,
        "image_encoder.layers": 2,
        "image_encoder.heads": 2,
        "text_encoder.width": 16,
        "text_encoder.layers": 2,
        "text_encoder.heads": 2,
        "text.vocabulary": 300,
        "text.length": 6,
    },
    "glide": {},
    "unclip": {},
    "unclip_prior": {},
    "pca": {},
    "gan": GAMES,
    "ddgan": GAMES | {"diffusion.timesteps": 4},
}


def config(base: str = "digits", /, **changes):
    """A config on digits made tiny; `changes` by dotted name with __ for the dots, a section as a dict."""
    made = load_file(str(ROOT / "configs" / f"{base}.py"))
    made.unlock()
    overrides = OVERRIDES | OVERRIDES_OF.get(made.system, {})
    if made.system in OVERRIDES_OF:  # their networks have not all the UNet's fields
        overrides = {name: value for name, value in overrides.items() if name in flatten(made)}
    for name, value in (overrides | {name.replace("__", "."): value for name, value in changes.items()}).items():
        section, _, field = name.rpartition(".")
        if not section or section in made:
            (made[section] if section else made)[field] = value
    return made.lock()


def write(path: Path, base: str = "digits", /, **changes) -> Path:
    """A config file that a command line can name."""
    lines = [
        "from ml_collections import ConfigDict",
        "inf = float('inf')",
        "def get_config():",
        f"    return ConfigDict({config(base, **changes).to_dict()!r})",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def thinned(*axes, every: int = 4) -> list:
    """All combinations for pytest to run, most of them marked slow.

    Every `every`-th is left, along diagonals, so that each value of the axes that are long enough has its turn.
    """

    def case(chosen):
        values, left = [value for _, value in chosen], sum(i for i, _ in chosen) % every == 0
        return pytest.param(*values, marks=() if left else pytest.mark.slow)

    return [case(chosen) for chosen in itertools.product(*map(enumerate, axes))]


def moment(step: int = 0, batch_size: int = 6) -> Moment:
    """Of a step on one device."""
    same = lambda tree: tree  # noqa: E731
    return Moment(jnp.asarray(step), jax.random.key(step), batch_size, jnp.asarray(step == 0), same, same)


def batch(size: int = 6, seed: int = 0) -> Batch:
    """Noise for images of 8x8, each with another label and another text of six tokens."""
    image = np.random.default_rng(seed).integers(0, 256, (size, 8, 8, 1), np.uint8)
    place = np.arange(size, dtype=np.int32)
    tokens = np.random.default_rng(seed + 1).integers(2, 300, (size, 6)).astype(np.int32)
    tokens[:, 0], end = 0, 1 + place[:, None] % 5  # texts of every length, one of nothing but its start and end
    tokens = np.where(np.arange(6) > end, NO_TOKEN, np.where(np.arange(6) == end, 1, tokens)).astype(np.int32)
    return {"image": image, "label": place % 10, "index": place, "tokens": tokens}


def randomised(init, seed: int = 0) -> Variables:
    """Fresh variables of `init`, but for random parameters: none is left at the zeros of initialisation.

    They are NumPy's, as compiling an initialisation takes seconds.
    """
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(init, jax.random.key(0))
    others = jax.jit(lambda key: {name: tree for name, tree in init(key).items() if name != "params"})

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        return jnp.asarray((path[-1].key == "scale") + rng.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return {**others(jax.random.key(seed)), "params": jax.tree_util.tree_map_with_path(draw, shapes["params"])}


def write_dalle(folder: Path, **changes) -> Path:
    """The file of a DALL-E of shapes whose parts lie beside it: codec.py, a VQ-VAE, and clip.py."""
    shapes = {"data__name": "shapes", "data__image_size": 8, "parallel__count": 1}
    text = {"tokenizer": "", "vocabulary": 300, "length": 12}
    write(folder / "codec.py", "vqvae", **shapes)
    write(folder / "clip.py", "clip_shapes", text=text, **shapes)
    given = {"parts": {"codec": "codec.py", "clip": "clip.py"}, "text": text, "train__sample_count": 4}
    return write(folder / "dalle.py", "dalle_shapes", **given, **shapes, **changes)


SHAPES = {"data__name": "shapes", "data__image_size": 16, "parallel__count": 1}
TEXT = {"tokenizer": "", "vocabulary": 300, "length": 12}
_FAST = {"train__steps": 2, "train__batch_size": 8, "train__sample_count": 4, "train__log_every": 1}
_UNET = {
    "model__channels": 8,
    "model__norm_groups": 4,
    "model__norm_min_channels": 4,
    "model__multipliers": (1, 2),
    "diffusion__timesteps": 20,
    "sampler__steps": 2,
}
_READER = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.1}


def stage(name: str, **changes):
    """The config of a stage of a chain of 16x16 scenes of shapes, tiny: its first picture is 8x8."""
    given = dict(SHAPES | _FAST)
    if name == "clip" or name == "noised_clip":
        given |= {"text": TEXT, "train__sample_count": 0}
        if name == "noised_clip":
            given |= {"diffusion__timesteps": 20}
        return config("clip_shapes" if name == "clip" else name, **given | changes)
    if name == "pca":
        given |= {"model__components": 4, "model__bins": 8, "text": TEXT}
    elif name == "prior":
        given |= {"model__width": 16, "model__layers": 1, "model__heads": 2, "diffusion__timesteps": 20}
        given |= {"sampler__steps": 2}
    elif name == "ar_prior":
        given |= {"model__layers": 1}
    elif name == "upsampler":
        given |= _UNET | {"diffusion__crop": 8, "model__attention_resolutions": ()}
    else:
        given |= _UNET | {"model__attention_resolutions": (4,), "model__head_channels": 8}
        given |= {"conditions__caption": _READER}
        if name == "decoder":
            given |= {"conditions__image_embedding": {"tokens": 2, "width": 8, "dropout": 0.1}}
        else:
            given |= {"text": TEXT}
    file = {
        "base": "glide_base",
        "inpainting": "glide_inpainting",
        "prior": "unclip_prior",
        "ar_prior": "unclip_ar_prior",
        "decoder": "unclip_decoder",
    }
    return config(file.get(name, name), **given | changes)


def write_chain(folder: Path, name: str, parts: Sequence[str], **changes) -> Path:
    """The file of a chain, `configs/NAME_shapes.py`, of tiny `parts`; stages that are no parts are left out."""
    made = load_file(str(ROOT / "configs" / f"{name}_shapes.py"))
    stages = [field for field, value in made.items() if value == f"@{field}"]
    given = {field: f"@{field}" if field in parts else "" for field in stages}
    given |= {"parts": {part: stage(part).to_dict() for part in parts}, "sampler": {}} | SHAPES
    return write(folder / f"{name}.py", f"{name}_shapes", **given | changes)
