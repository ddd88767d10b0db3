"""The smallest config that still has every part: digits, a UNet of a few thousand parameters, ten timesteps."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.typing import Batch, Moment, Variables
from diffjax.workdir import flatten, load_file

ROOT = Path(__file__).parent.parent

OVERRIDES = {
    "model.channels": 8,
    "model.norm_groups": 4,
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
    "gan": GAMES,
    "ddgan": GAMES | {"diffusion.timesteps": 4},
}


def config(base: str = "digits", **changes):
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


def write(path: Path, base: str = "digits", **changes) -> Path:
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
    return Moment(jnp.asarray(step), jax.random.key(step), batch_size, jnp.asarray(step == 0), lambda tree: tree)


def batch(size: int = 6, seed: int = 0) -> Batch:
    """Noise for images of 8x8, each with another label."""
    image = np.random.default_rng(seed).integers(0, 256, (size, 8, 8, 1), np.uint8)
    return {"image": image, "label": np.arange(size, dtype=np.int32) % 10, "index": np.arange(size, dtype=np.int32)}


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
