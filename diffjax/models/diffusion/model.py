"""A diffusion model: a process, a space, what the network is told, and the network. Every diffusion system is one."""

import functools
from collections.abc import Mapping

import jax
from flax import linen as nn
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.diffusion import sampling
from diffjax.errors import UserError
from diffjax.models.abstract import described
from diffjax.models.diffusion.conditioning import Conditions, make_conditions
from diffjax.models.diffusion.conditions import Given
from diffjax.models.diffusion.data_space import Space
from diffjax.models.diffusion.process import Process
from diffjax.models.diffusion.sampling_settings import Model, Plan, draw, make_plan
from diffjax.models.networks import check_buildable, make_denoiser
from diffjax.models.pixels import to_unit_range
from diffjax.nn.unet import UNet
from diffjax.typing import Aux, ImageSpec, Objective, PRNGKeys, System, Variables


def make_picture_system(config, spec: ImageSpec, space: Space, parts: Mapping[str, tuple[System, Variables]]) -> System:
    """`make_system` of pictures, or of what a codec makes of them, by the network of `config.model`."""
    process = Process.from_config(config.diffusion)
    clip = described(parts["clip"][0].clip, parts["clip"][1]) if "clip" in parts else None
    conditions = make_conditions(config, spec, space, clip)
    network = make_denoiser(
        config, spec, space.shape, label_rows=conditions.label_rows, learns_variance=process.learns_variance
    )
    return make_system(config, spec, process, space, conditions, network, parts)


def make_system(
    config,
    spec: ImageSpec,
    process: Process,
    space: Space,
    conditions: Conditions,
    network: nn.Module,
    parts: Mapping[str, tuple[System, Variables]],
) -> System:
    """The diffusion system of `config` for pictures of `spec`. Raises UserError for what does not fit.

    Args:
      network: of (x_t, t), and by name the inputs that there are: see conditions.Inputs.
      parts: trained systems that it stands on, "clip" among them where conditions or the space are CLIP's.
    """
    frozen = {name: variables for name, (_, variables) in parts.items()}
    text, embeds, crop = conditions.text, len(space.shape) == 1, config.diffusion.get("crop", 0)
    if crop:
        _check_crop(crop, space.shape[0], network)

    def clip_of(variables):
        return parts["clip"][0].clip(variables["frozen"]["clip"]) if "clip" in parts else None

    def given(variables, asked, keys, level=None):
        return Given(asked, clip_of(variables), functools.partial(space.encode, variables), keys, level)

    def denoise(variables, values, dropout_keys=None, window=lambda x: x):
        params = variables["params"]["model"]
        inputs = conditions.inputs(params.get("conditions", {}), values, clip_of(variables))._asdict()
        channels = jax.tree.map(window, inputs.pop("channels"))
        inputs = {name: value for name, value in inputs.items() if value is not None}

        def apply(x, t):
            x = x if channels is None else jnp.concatenate([x, channels], axis=-1)
            return network.apply({"params": params}, x, t, **inputs, dropout_keys=dropout_keys)

        return apply

    def init(key):
        network_key, conditions_key, told_key = jax.random.split(key, 3)
        own = conditions.init(conditions_key)
        asked = {"label": jnp.zeros(1, jnp.int32), "original": jnp.zeros((1, spec.size, spec.size, spec.channels))}
        if text:
            asked["tokens"] = jnp.zeros((1, text.length), jnp.int32)

        def inputs(frozen):
            variables = {"frozen": frozen}
            values = conditions.of(given(variables, asked, told_key[None]))
            return conditions.inputs(own, values, clip_of(variables))._asdict()

        # of their shapes alone: parts are not run
        blank = {n: jnp.zeros(v.shape, v.dtype) for n, v in jax.eval_shape(inputs, frozen).items() if v is not None}
        channels = blank.pop("channels").shape[-1] if "channels" in blank else 0
        x = jnp.zeros((1, *space.shape[:-1], space.shape[-1] + channels))
        params = network.init(network_key, x, jnp.zeros((1,)), **blank)["params"]
        memory = process.times.init(process.schedule)
        own = {"conditions": own} if own else {}
        return {"params": {"model": {**params, **process.init(), **own}}} | ({"times": memory} if memory else {})

    def loss(variables, batch, keys, moment):
        split = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
        told_key, dropout_key, noise_key, crop_key = jnp.moveaxis(split, 1, 0)
        window = functools.partial(_cropped, crop_key, crop) if crop else lambda x: x
        original = to_unit_range(batch["image"])
        values = conditions.of(given(variables, {**batch, "original": original}, told_key))
        values = conditions.dropped(values, sampling.fold_in(told_key, len(conditions.each)))
        value, memory = process.bound(variables["params"]["model"]).train_loss(
            denoise(variables, values, dropout_key, window),
            window(lax.stop_gradient(space.encode(variables, original))),
            noise_key,
            variables.get("times", {}),
        )
        return value, Aux({}, {"times": memory} if memory else {})

    def model(variables, condition, keys=None, level=0.0) -> Model:
        count = len(jax.tree.leaves(condition)[0])
        keys = jax.random.split(jax.random.key(0), count) if keys is None else keys
        values = conditions.of(given(variables, condition, keys, level))
        bound = process.bound(variables["params"]["model"])
        unconditional = None
        if conditions.guided:
            unconditional = bound.denoiser(denoise(variables, conditions.withheld(values, count)))
        return Model(
            bound,
            bound.denoiser(denoise(variables, values)),
            unconditional,
            space.shape,
            functools.partial(space.encode, variables),
            functools.partial(space.decode, variables),
        )

    def sample(variables, keys, condition, plan: Plan):
        told_keys = sampling.fold_in(keys, 2**31 - 1)  # no step is folded in as that
        return draw(model(variables, condition, told_keys, plan.scales["augmentation"]), keys, plan, condition)

    # What does not fit is refused here, before anything is trained.
    plan = functools.partial(make_plan, process, guided=conditions.guided, pixels=space.pixels, takes=conditions.takes)
    plan(config.sampler)
    check_buildable(init)
    return System(
        Objective(init, {"model": loss}),
        conditions.classes,
        plan,
        sample,
        model,
        text=text,
        frozen=frozen,
        takes=conditions.takes,
        schedule=process.schedule,
        gives=space.shape[0] if space.pixels or embeds else spec.size,
        embeds=embeds,
    )


def _cropped(keys: PRNGKeys, side: int, x: Float[Array, "B H W C"]) -> Float[Array, "B side side C"]:
    """A square of each example, the same of whatever is cropped by its key."""

    def one(key, x):
        top, left = jax.random.randint(key, (2,), 0, x.shape[0] - side + 1)
        return lax.dynamic_slice(x, (top, left, 0), (side, side, x.shape[-1]))

    return jax.vmap(one)(keys, x)


def _check_crop(crop: int, side: int, network: nn.Module) -> None:
    """Raises UserError for crops that are none, or not of the network's, or of one that sees a whole picture."""
    if not 0 < crop <= side:
        raise UserError(f"diffusion.crop={crop}: the side of a square of pictures of {side}x{side}, or 0 for none")
    if not isinstance(network, UNet) or network.attention_resolutions or network.middle_attention:
        raise UserError(
            "diffusion.crop trains on parts of pictures, which only a network without attention enlarges to whole ones "
            "(unCLIP, section 2.3): set model.attention_resolutions=() and model.middle_attention=False"
        )
    halvings = len(network.multipliers) - 1
    if crop % 2**halvings:
        raise UserError(
            f"diffusion.crop={crop} cannot be halved {halvings} times, as model.multipliers asks: use a multiple of "
            f"{2**halvings}, or fewer multipliers"
        )
