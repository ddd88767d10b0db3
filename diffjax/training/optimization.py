"""The optimiser and the learning rate of a group of parameters, from the fields of `train`."""

from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax.contrib import ScheduleFreeState

from diffjax import registry
from diffjax.errors import UserError, validate_integer, validate_number
from diffjax.models.parameter_paths import name_of
from diffjax.training import learning_rates, optimizers

Settings = Mapping[str, Any]  # fields of `train`
_WITH_RATE_FACTORS = ("adamw", "adan", "lion", "schedule_free")  # whose updates have entries of one size


def learning_rate_schedule(name: str, peak: float, *, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Returns the learning rate by number of updates: a linear warm-up from zero to `peak`, then the named schedule.

    Args:
      name: a choice of `learning_rates` with its options, such as "cosine(end=0.1)".

    Raises:
      UserError: an unknown name, or a number that is not valid.
    """
    validate_number("train.learning_rate", peak, low=0)
    validate_integer("train.warmup_steps", warmup_steps, low=0)
    injected = {"steps": max(total_steps - warmup_steps, 1), "warmup": warmup_steps}
    choice = registry.lookup("train.learning_rate_schedule", learning_rates, name, injected=injected)
    after = choice.bind(**injected)(peak)
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps]) if warmup_steps else after


def make_optimizer(
    settings: Settings, rate: optax.Schedule, rate_factors: Any | None = None
) -> optax.GradientTransformation:
    """Returns the optimiser of `settings` on clipped gradients.

    Only matrices and kernels decay: leaves with two or more axes that are not named "scale", "bias" or "unit_kernel"
    (EDM2's, of fixed norm). Gains, biases, single vectors and CLIP's logit scale do not decay; embedding tables of
    tokens and positions do, as in the published code of CLIP and GPT-2.

    Args:
      settings: the fields `optimizer`, a choice of `optimizers` with its options, such as "muon(momentum=0.9)";
        `clip_norm`, the largest global norm of the gradients (0: no clipping); `weight_decay` per step, times the
        learning rate (0: none); `beta1` and `beta2`.
      rate: learning rate by number of updates.
      rate_factors: factor of the learning rate of each parameter, a tree with their structure. The weight decay is not
        scaled by it. None: all are 1.

    Raises:
      UserError: an unknown name, a number that is not valid, or fields that do not fit the optimiser.

    Reference: Radford et al. 2021, section 2.5: "all weights that are not gains or biases".
    """
    clip_norm = validate_number("train.clip_norm", settings["clip_norm"], low=0)
    weight_decay = validate_number("train.weight_decay", settings["weight_decay"], low=0)
    betas = {
        name: validate_number(f"train.{name}", settings[name], low=0, high=1, exclusive="high")
        for name in ("beta1", "beta2")
    }
    name = settings.get("optimizer", "adamw")
    choice = registry.lookup("train.optimizer", optimizers, name, injected=betas)
    if choice.name == "schedule_free":
        _check_schedule_free(settings)
    if rate_factors is not None and choice.name not in _WITH_RATE_FACTORS:
        raise UserError(
            f"train.optimizer={name}: does not support train.mup_base_width; choose from "
            f"{', '.join(_WITH_RATE_FACTORS)}, or set the width to 0"
        )
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, choice.bind(**betas)(rate, _decayed_weights(weight_decay, rate_factors)))


def averaged_params(state: optax.OptState, params: Any) -> Any | None:
    """Returns the average of the parameters that an optimiser computes itself, as the schedule-free one does.

    Args:
      state: optimiser state.
      params: parameters, after the update.

    Returns:
      The average; None: the optimiser computes none.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, ScheduleFreeState))
    states = [node for node in nodes if isinstance(node, ScheduleFreeState)]
    if not states:
        return None
    b1, z = states[0].b1, states[0].z
    is_frozen = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda z, y: y if is_frozen(z) else (y - (1 - b1) * z) / b1, z, params, is_leaf=is_frozen)


def _check_schedule_free(settings: Settings) -> None:
    """Raises UserError if the learning rate decays, or if other averages are wanted."""
    schedule = settings["learning_rate_schedule"]
    if schedule != "constant":
        raise UserError(
            f"train.optimizer=schedule_free: replaces the decay of the learning rate by an average, and "
            f"train.learning_rate_schedule={schedule}; set it to constant"
        )
    if settings.get("ema_lengths", ()):
        raise UserError(
            "train.optimizer=schedule_free: averages the weights itself, and train.ema_lengths adds averages of the "
            "points between; set train.ema_lengths to ()"
        )


def _decayed_weights(weight_decay: float, rate_factors: Any | None) -> optax.GradientTransformation:
    """Returns optax.add_decayed_weights for the leaves that decay, without optax's mask, which changes the state.

    The updates are scaled by `rate_factors` before, so that the decay does not depend on them.
    """

    def decays(path, leaf) -> bool:
        return leaf.ndim >= 2 and name_of(path) not in ("scale", "bias", "unit_kernel")

    def update(updates, params):
        if rate_factors is not None:
            updates = jax.tree.map(
                lambda update, factor: update if isinstance(update, optax.MaskedNode) else factor * update,
                updates,
                rate_factors,
                is_leaf=lambda node: isinstance(node, optax.MaskedNode),
            )

        def add(path, update, param):
            return update + weight_decay * param if decays(path, param) else update

        return jax.tree_util.tree_map_with_path(add, updates, params)

    return optax.stateless(update)
