"""Tiny configs and inputs: 8x8 digits, networks of a few thousand parameters, 20 timesteps."""

import copy
import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.models.base import Model
from diffjax.runs import state
from diffjax.runs.config_fields import documented_fields, documented_name
from diffjax.runs.config_files import flatten, load_file
from diffjax.runs.state import TrainState
from diffjax.typing import NO_TOKEN, Batch, LossFn, PRNGKey, StepContext, Variables

M = TypeVar("M")
ROOT = Path(__file__).parent.parent
# Options of jax.jit for long computations: those of a test compile fast and run slowly (conftest.py).
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossModel(Model):
    """A model of given functions."""

    init_function: Callable[[PRNGKey], Variables]
    loss_functions: Mapping[str, LossFn] = dataclasses.field(default_factory=dict)

    def init(self, key: PRNGKey) -> Variables:
        return self.init_function(key)

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return self.loss_functions


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
    "train.eval_every": 0,
    "train.sample_every": 0,
    "train.num_preview_samples": 10,
    "train.checkpoint_every": 2,
    "train.max_consecutive_skips": 0,
    "sampler.steps": 4,
}
DIT = {"architecture": "dit", "patch": 4, "width": 8, "layers": 1, "heads": 2}  # compiles faster than a UNet
AUTOENCODERS = {
    "model.residual_channels": 8,
    "model.blocks": 1,
    "model.groups": 2,
    "model.latent_channels": 4,
    "model.z_channels": 8,
    "codebook.size": 8,
    "adversarial.channels": 8,
}
PRIORS = {
    "model.features": 8,
    "model.layers": 2,
    "model.width": 16,
    "model.heads": 2,
    "model.dropout": 0.0,
}
GANS = {"model.latent": 8, "discriminator.channels": 8, "mapping.latent": 8, "mapping.width": 8}
NETWORKS = ("model", "adversarial", "conditions", "discriminator", "mapping", "image_encoder")  # sections
OVERRIDES_OF = {  # by config.system
    "vae": AUTOENCODERS,
    "vqvae": AUTOENCODERS,
    "dvae": AUTOENCODERS,
    "prior": PRIORS,
    "masked_prior": PRIORS,
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
    "gan": GANS,
    "ddgan": GANS | {"diffusion.timesteps": 4},
}


def config(base: str = "digits", /, **changes):
    """Returns a config of digits with tiny networks.

    Args:
      base: name of a config file, such as "digits", or with a variant "vqvae:cifar10".
      changes: values by dotted name with __ for the dots; for sections that the config does not have they are ignored.

    Raises:
      KeyError: a name is not in configs/common.py; models refuse unknown fields of their networks themselves.
    """
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    known = [*documented_fields(), "parts"]
    for name in changes:
        if name.split(".")[0] not in NETWORKS and not any(
            f"{field}.".startswith(f"{documented_name(name)}.") for field in known
        ):
            raise KeyError(f"{name}: is not in configs/common.py")
    file, colon, variant = base.partition(":")
    result = load_file(f"{ROOT / 'configs' / file}.py{colon}{variant}")
    result.unlock()
    overrides = OVERRIDES | OVERRIDES_OF.get(result.system, {})
    if result.system in OVERRIDES_OF:  # their networks do not have all fields of the UNet
        overrides = {name: value for name, value in overrides.items() if name in flatten(result)}
    for name, value in (overrides | changes).items():
        section, _, field = name.rpartition(".")
        if not section or section in result:
            (result[section] if section else result)[field] = value
    return result.lock()


def write(path: Path, base: str = "digits", /, **changes) -> Path:
    """Writes a config file."""
    lines = [
        "from ml_collections import ConfigDict",
        "inf = float('inf')",
        "def get_config():",
        f"    return ConfigDict({config(base, **changes).to_dict()!r})",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def thinned(*axes, every: int = 4) -> list:
    """Returns all combinations as pytest parameters, all but every `every`-th marked slow.

    The others are along diagonals, so that each value of an axis of at least `every` values is among them.
    """

    def case(chosen):
        values, left = [value for _, value in chosen], sum(i for i, _ in chosen) % every == 0
        return pytest.param(*values, marks=() if left else pytest.mark.slow)

    return [case(chosen) for chosen in itertools.product(*map(enumerate, axes))]


def moment(step: int = 0, batch_size: int = 6) -> StepContext:
    """Returns the context of a training step on one device."""
    same = lambda tree: tree  # noqa: E731
    return StepContext(jnp.asarray(step), jax.random.key(step), batch_size, jnp.asarray(step == 0), same, same)


def batch(size: int = 6, seed: int = 0) -> Batch:
    """Returns 8x8 images of noise, with different labels and captions of up to six tokens."""
    image = np.random.default_rng(seed).integers(0, 256, (size, 8, 8, 1), np.uint8)
    place = np.arange(size, dtype=np.int32)
    tokens = np.random.default_rng(seed + 1).integers(2, 300, (size, 6)).astype(np.int32)
    tokens[:, 0], end = 0, 1 + place[:, None] % 5  # captions of every length, one of them empty
    tokens = np.where(np.arange(6) > end, NO_TOKEN, np.where(np.arange(6) == end, 1, tokens)).astype(np.int32)
    return {"image": image, "label": place % 10, "index": place, "tokens": tokens}


def randomised(init, seed: int = 0) -> Variables:
    """Returns variables of `init` with random parameters: none is zero, as after some initialisations.

    NumPy samples them, because compiling an initialisation takes seconds.
    """
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(init, jax.random.key(0))
    others = jax.jit(lambda key: {name: tree for name, tree in init(key).items() if name != "params"})
    collections = others(jax.random.key(seed)) if shapes.keys() != {"params"} else {}

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        return jnp.asarray((path[-1].key == "scale") + rng.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return {**collections, "params": jax.tree_util.tree_map_with_path(draw, shapes["params"])}


def initial_state(variables: Variables, optimizers) -> TrainState:
    """Returns the training state before the first step of a model with fresh `variables`."""
    model = types.SimpleNamespace(init=lambda key: variables)
    return jax.jit(functools.partial(state.initial_state, model, optimizers))(jax.random.key(0))


def with_init(model: M, variables: Variables) -> M:
    """Returns a copy of a model whose `init` returns `variables`."""
    copied = copy.copy(model)
    vars(copied).pop("variable_shapes", None)
    object.__setattr__(copied, "init", lambda key: variables)
    return copied


def write_dalle(folder: Path, **changes) -> Path:
    """Writes the config of a DALL-E of shapes, and of its parts: codec.py, a VQ-VAE, and clip.py."""
    shapes = {"data__name": "shapes", "data__image_size": 8, "parallel__num_devices": 1}
    text = {"tokenizer": "", "vocabulary": 300, "length": 12}
    write(folder / "codec.py", "vqvae", train__num_preview_samples=0, **shapes)
    write(folder / "clip.py", "clip_shapes", text=text, image_encoder__layers=1, text_encoder__layers=1, **shapes)
    fields = {
        "parts": {"codec": "codec.py", "clip": "clip.py"},
        "text": text,
        "train__num_preview_samples": 0,
    } | changes
    return write(folder / "dalle.py", "dalle_shapes", **shapes | fields)


SHAPES = {"data__name": "shapes", "data__image_size": 16, "parallel__num_devices": 1}
TEXT = {"tokenizer": "", "vocabulary": 300, "length": 12}
_FAST = {"train__steps": 2, "train__batch_size": 8, "train__num_preview_samples": 0, "train__log_every": 1}
_UNET = {
    "model__channels": 8,
    "model__norm_groups": 4,
    "model__norm_min_channels": 4,
    "model__multipliers": (1,),
    "diffusion__timesteps": 20,
    "sampler__steps": 2,
}
_READER = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.1}


def stage(name: str, **changes):
    """Returns a tiny config of a stage of a pipeline of 16x16 images of shapes; the first stage has 8x8 images."""
    fields = dict(SHAPES | _FAST)
    if name == "clip" or name == "noised_clip":
        fields |= {"text": TEXT, "image_encoder__layers": 1, "text_encoder__layers": 1}
        if name == "noised_clip":
            fields |= {"diffusion__timesteps": 20}
        return config("clip_shapes" if name == "clip" else name, **fields | changes)
    if name == "pca":
        fields |= {"model__components": 4, "model__bins": 8, "text": TEXT}
    elif name == "prior":
        fields |= {"model__width": 16, "model__layers": 1, "model__heads": 2, "diffusion__timesteps": 20}
        fields |= {"sampler__steps": 2}
    elif name == "ar_prior":
        fields |= {"model__layers": 1}
    elif name == "upsampler":
        fields |= _UNET | {"diffusion__crop": 8, "model__attention_resolutions": ()}
    else:
        fields |= _UNET | {"model__attention_resolutions": (8,), "model__head_channels": 8}
        fields |= {"conditions__caption": _READER}
        if name == "decoder":
            fields |= {"conditions__image_embedding": {"tokens": 2, "width": 8, "dropout": 0.1}}
        else:
            fields |= {"text": TEXT}
    file = {
        "base": "glide_base",
        "inpainting": "glide_inpainting",
        "prior": "unclip_prior",
        "ar_prior": "unclip_ar_prior",
        "decoder": "unclip_decoder",
    }
    return config(file.get(name, name), **fields | changes)


def write_pipeline(folder: Path, name: str, parts: Sequence[str], **changes) -> Path:
    """Writes the config of a pipeline, `configs/NAME_shapes.py`, of tiny `parts`; other stages are left out."""
    result = load_file(str(ROOT / "configs" / f"{name}_shapes.py"))
    stages = [field for field, value in result.items() if value == f"@{field}"]
    fields = {field: f"@{field}" if field in parts else "" for field in stages}
    models = {part: {"model": DIT} for part in ("base", "decoder")}
    fields |= {"parts": {part: stage(part, **models.get(part, {})).to_dict() for part in parts}, "sampler": {}} | SHAPES
    return write(folder / f"{name}.py", f"{name}_shapes", **fields | changes)
