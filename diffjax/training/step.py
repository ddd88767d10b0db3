"""One training step for everything: gradients of each group, averaged over devices, an optax update, the EMA."""

import functools
from collections.abc import Callable, Mapping

import jax
import optax
from jax import lax
from jax import numpy as jnp

from diffjax.runs.state import TrainState
from diffjax.training import nonfinite
from diffjax.typing import Batch, LossFn, Moment, Objective, PRNGKey, PRNGKeys, Scalar, Variables

Metrics = Mapping[str, Scalar]
Step = Callable[[TrainState, Batch, Mapping[str, Variables]], tuple[TrainState, Metrics]]


def make_step(
    objective: Objective,
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    key: PRNGKey,
    ema_decay: float,
    examples: int,
    accumulate: int = 1,
    skip_limit: int = 0,
    axis_name: str | None = None,
) -> Step:
    """Builds the step as a pure function.

    Every group's gradient is taken at the old parameters. An example's randomness comes from (key, step, its index in
    the global batch), so the result depends neither on the number of devices nor on `accumulate`.

    A step whose gradient or metrics are not finite changes nothing but the counts in `TrainState.health`. Past
    `skip_limit` of them in a row no step changes anything any more, so that the state before the first stays at hand.
    To the metrics of the losses are added "grad_norm", "skipped" (steps so far), "skipped_in_a_row", and
    "loss_deviation", in standard deviations of the losses of the last 100 steps.

    Args:
      ema_decay: the average's decay once warm: at step s it is min(ema_decay, (1 + s) / (10 + s)), so that early
        averages are not the random initial weights.
      examples: of the data set, which make an epoch.
      accumulate: number of equal parts the batch is worked through in, one after another.
      skip_limit: steps in a row that may be skipped.
      axis_name: the device axis when the step runs as an SPMD program per device (each sees its share of the batch);
        None when it sees the global batch.
    """

    mean = functools.partial(lax.pmean, axis_name=axis_name) if axis_name else lambda tree: tree
    gather = functools.partial(lax.all_gather, axis_name=axis_name, tiled=True) if axis_name else lambda tree: tree
    prefix = functools.partial(_prefix, objective.losses)

    def step(state: TrainState, batch: Batch, frozen: Mapping[str, Variables] = {}) -> tuple[TrainState, Metrics]:
        batch_size = len(batch["index"]) * (lax.axis_size(axis_name) if axis_name else 1)
        moment = moment_of(state.step, key, batch_size, examples)._replace(mean=mean, gather=gather)
        keys = keys_of(moment, batch)
        variables = {**state.variables, "frozen": frozen}
        grads, metrics, updated = mean(_accumulated(objective.losses, variables, batch, keys, moment, accumulate))

        metrics = {**metrics, "grad_norm": optax.global_norm(grads)}
        if objective.summarize:
            metrics |= {prefix("model") + name: value for name, value in objective.summarize(updated).items()}

        params, optimizer = dict(state.variables["params"]), {}
        for group, opt in optimizers.items():
            updates, optimizer[group] = opt.update(grads[group], state.optimizer[group], params[group])
            params[group] = optax.apply_updates(params[group], updates)
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        losses = {group: metrics[f"{prefix(group)}loss"] for group in optimizers}
        new = state.replace(
            variables={**state.variables, **updated, "params": params},
            ema=optax.incremental_update(params, state.ema, 1.0 - decay),
            optimizer=optimizer,
            health=nonfinite.after_sound(state.health, losses),
        )
        old = state.replace(health=nonfinite.after_skipped(state.health))
        sound = nonfinite.is_finite(metrics) & (state.health.in_a_row <= skip_limit)
        new = jax.tree.map(functools.partial(jnp.where, sound), new, old).replace(step=state.step + 1)
        return new, {
            **metrics,
            "skipped": new.health.skipped,
            "skipped_in_a_row": new.health.in_a_row,
            "loss_deviation": nonfinite.deviation(state.health, losses),
        }

    return step


def moment_of(step: Scalar, key: PRNGKey, batch_size: int, examples: int) -> Moment:
    """What all examples of a step have in common, where one device sees them all."""
    new_epoch = step % max(1, round(examples / batch_size)) == 0
    same = lambda tree: tree  # noqa: E731
    return Moment(step, jax.random.fold_in(key, step), batch_size, new_epoch, same, same)


def keys_of(moment: Moment, batch: Batch) -> PRNGKeys:
    """[B], of each example's own randomness."""
    return jax.vmap(jax.random.fold_in, (None, 0))(moment.key, batch["index"])


def _accumulated(
    losses: Mapping[str, LossFn], variables: Variables, batch: Batch, keys: PRNGKeys, moment: Moment, parts: int
):
    """Mean (gradients, metrics, mutable variables) over `parts` parts of the batch, one after another."""
    if parts == 1:
        return _gradients(losses, variables, batch, keys, moment)
    # Part i takes examples i, i + parts, ...: a batch laid out over devices stays where it is.
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), (batch, keys))

    def add(total, part):
        return jax.tree.map(jnp.add, total, _gradients(losses, variables, *part, moment)), None

    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(lambda part: _gradients(losses, variables, *part, moment), first)
    total, _ = lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), split)
    return jax.tree.map(lambda x: x / parts, total)


def _gradients(losses: Mapping[str, LossFn], variables: Variables, batch: Batch, keys: PRNGKeys, moment: Moment):
    grads, metrics, updated = {}, {}, {}
    for group, loss_fn in losses.items():

        def mean_loss(params, group=group, loss_fn=loss_fn):
            loss, aux = loss_fn({**variables, "params": {**variables["params"], group: params}}, batch, keys, moment)
            return loss.mean(), aux

        (loss, aux), grads[group] = jax.value_and_grad(mean_loss, has_aux=True)(variables["params"][group])
        metrics |= {
            _prefix(losses, group) + name: values.mean() for name, values in {"loss": loss, **aux.metrics}.items()
        }
        updated |= aux.variables
    return grads, metrics, updated


def _prefix(losses: Mapping[str, LossFn], group: str) -> str:
    """Of the names of a group's metrics."""
    return f"{group}/" if len(losses) > 1 else ""
