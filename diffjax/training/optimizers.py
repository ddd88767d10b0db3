"""Adam with warm-up, gradient clipping and decoupled weight decay."""

import jax
import optax

from diffjax.errors import unknown, validate_integer, validate_number


def learning_rate_schedule(name: str, peak: float, *, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Returns the learning rate by step: a linear warm-up from zero to `peak`, then the named schedule.

    Args:
      name: "constant", or "cosine", which decays to zero at `total_steps`.

    Raises:
      UserError: an unknown name, or a number that is negative or not finite.
    """
    validate_number("train.learning_rate", peak, low=0)
    validate_integer("train.warmup_steps", warmup_steps, low=0)
    decay_steps = max(total_steps - warmup_steps, 1)
    after = {"constant": optax.constant_schedule(peak), "cosine": optax.cosine_decay_schedule(peak, decay_steps)}
    if name not in after:
        raise unknown("train.learning_rate_schedule", name, after)
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, after[name]], [warmup_steps]) if warmup_steps else after[name]


def adam(
    learning_rate: optax.Schedule, *, clip_norm: float, weight_decay: float, beta1: float, beta2: float
) -> optax.GradientTransformation:
    """Returns AdamW on clipped gradients.

    Only matrices and kernels decay: leaves with two or more axes that are not named "scale" or "bias". Gains, biases,
    single vectors and CLIP's logit scale do not decay; embedding tables of tokens and positions do, as in the
    published code of CLIP and GPT-2.

    Args:
      clip_norm: largest global norm of the gradients; 0: no clipping.
      weight_decay: decay per step, times the learning rate; 0: Adam.

    Raises:
      UserError: a number is negative or not finite, or a beta is not below 1.

    Reference: Radford et al. 2021, section 2.5: "all weights that are not gains or biases".
    """
    validate_number("train.clip_norm", clip_norm, low=0)
    validate_number("train.weight_decay", weight_decay, low=0)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        validate_number(f"train.{name}", beta, low=0, high=1, exclusive="high")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    adamw = optax.chain(
        optax.scale_by_adam(b1=beta1, b2=beta2),
        _decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    return optax.chain(clip, adamw)


def _decayed_weights(weight_decay: float) -> optax.GradientTransformation:
    """Returns optax.add_decayed_weights for the leaves that decay, without optax's mask, which changes the state."""

    def decays(path, leaf) -> bool:
        return leaf.ndim >= 2 and not (path and getattr(path[-1], "key", None) in ("scale", "bias"))

    def update(updates, params):
        def add(path, update, param):
            return update + weight_decay * param if decays(path, param) else update

        return jax.tree_util.tree_map_with_path(add, updates, params)

    return optax.stateless(update)
