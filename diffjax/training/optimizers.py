"""The optimiser of the line: Adam with warm-up and clipping, from plain values."""

import jax
import optax

from diffjax.errors import checked_number, checked_whole, unknown


def learning_rate_schedule(name: str, peak: float, *, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up from zero to `peak`, then "constant", or "cosine" down to zero at `total_steps`.

    Raises UserError for another name, and for numbers below zero or not finite.
    """
    checked_number("train.learning_rate", peak, low=0)
    checked_whole("train.warmup_steps", warmup_steps, low=0)
    decay_steps = max(total_steps - warmup_steps, 1)
    after = {"constant": optax.constant_schedule(peak), "cosine": optax.cosine_decay_schedule(peak, decay_steps)}
    if name not in after:
        raise unknown("train.schedule", name, after)
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, after[name]], [warmup_steps]) if warmup_steps else after[name]


def adam(
    learning_rate: optax.Schedule, *, clip_norm: float, weight_decay: float, beta1: float, beta2: float
) -> optax.GradientTransformation:
    """AdamW (Adam where `weight_decay` is 0) on gradients clipped to a global norm (0: not clipped).

    Only matrices and kernels decay: leaves of two axes or more that are not called "scale" or "bias". So gains, biases,
    single vectors and CLIP's logit scale do not (Radford et al. 2021, section 2.5: "all weights that are not gains or
    biases"); tables of tokens and positions do, as in the published code of CLIP and GPT-2.

    Raises UserError for what is negative or not finite, and for means that forget nothing.
    """
    checked_number("train.clip_norm", clip_norm, low=0)
    checked_number("train.weight_decay", weight_decay, low=0)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        checked_number(f"train.{name}", beta, low=0, high=1, open_at="high")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    adamw = optax.chain(
        optax.scale_by_adam(b1=beta1, b2=beta2),
        _decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    return optax.chain(clip, adamw)


def _decayed_weights(weight_decay: float) -> optax.GradientTransformation:
    """optax.add_decayed_weights of the leaves that decay; without optax's mask, which changes the state's structure."""

    def decays(path, leaf) -> bool:
        return leaf.ndim >= 2 and not (path and getattr(path[-1], "key", None) in ("scale", "bias"))

    def update(updates, params):
        def add(path, update, param):
            return update + weight_decay * param if decays(path, param) else update

        return jax.tree_util.tree_map_with_path(add, updates, params)

    return optax.stateless(update)
