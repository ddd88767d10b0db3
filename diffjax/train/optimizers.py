"""The optimiser of the line: Adam with warm-up and clipping, from plain values."""

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

    Raises UserError for what is negative or not finite, and for means that forget nothing.
    """
    checked_number("train.clip_norm", clip_norm, low=0)
    checked_number("train.weight_decay", weight_decay, low=0)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        checked_number(f"train.{name}", beta, low=0, high=1, open_at="high")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, optax.adamw(learning_rate, b1=beta1, b2=beta2, weight_decay=weight_decay))
