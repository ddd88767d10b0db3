"""One training step for everything: gradients of each group, averaged over devices, an optax update, the EMA."""

from collections.abc import Callable, Mapping

import jax
import optax
from jax import lax
from jax import numpy as jnp

from diffjax.train.state import TrainState
from diffjax.typing import Batch, LossFn, Objective, PRNGKey, PRNGKeys, Scalar, Variables

Metrics = Mapping[str, Scalar]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    objective: Objective,
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    key: PRNGKey,
    ema_decay: float,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Step:
    """Builds the step as a pure function.

    Every group's gradient is taken at the old parameters. An example's randomness comes from (key, step, its index in
    the global batch), so the result depends neither on the number of devices nor on `accumulate`.

    Args:
      ema_decay: the average's decay once warm: at step s it is min(ema_decay, (1 + s) / (10 + s)), so that early
        averages are not the random initial weights.
      accumulate: number of equal parts the batch is worked through in, one after another.
      axis_name: the device axis when the step runs as an SPMD program per device (each sees its share of the batch);
        None when it sees the global batch.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, batch["index"])
        results = _accumulated(objective.losses, state.variables, batch, keys, accumulate)
        if axis_name is not None:
            results = lax.pmean(results, axis_name)
        grads, metrics, updated = results

        params, optimizer = dict(state.variables["params"]), {}
        for group, opt in optimizers.items():
            updates, optimizer[group] = opt.update(grads[group], state.optimizer[group], params[group])
            params[group] = optax.apply_updates(params[group], updates)
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        new = TrainState(
            step=state.step + 1,
            variables={**state.variables, **updated, "params": params},
            ema=optax.incremental_update(params, state.ema, 1.0 - decay),
            optimizer=optimizer,
        )
        return new, {**metrics, "grad_norm": optax.global_norm(grads)}

    return step


def _accumulated(losses: Mapping[str, LossFn], variables: Variables, batch: Batch, keys: PRNGKeys, parts: int):
    """Mean (gradients, metrics, mutable variables) over `parts` parts of the batch, one after another."""
    if parts == 1:
        return _gradients(losses, variables, batch, keys)
    # Part i takes examples i, i + parts, ...: a batch laid out over devices stays where it is.
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), (batch, keys))

    def add(total, part):
        return jax.tree.map(jnp.add, total, _gradients(losses, variables, *part)), None

    shapes = jax.eval_shape(lambda part: _gradients(losses, variables, *part), jax.tree.map(lambda x: x[0], split))
    total, _ = lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), split)
    return jax.tree.map(lambda x: x / parts, total)


def _gradients(losses: Mapping[str, LossFn], variables: Variables, batch: Batch, keys: PRNGKeys):
    grads, metrics, updated = {}, {}, {}
    for group, loss_fn in losses.items():

        def mean_loss(params, group=group, loss_fn=loss_fn):
            loss, aux = loss_fn({**variables, "params": {**variables["params"], group: params}}, batch, keys)
            return loss.mean(), aux

        (loss, aux), grads[group] = jax.value_and_grad(mean_loss, has_aux=True)(variables["params"][group])
        prefix = f"{group}/" if len(losses) > 1 else ""
        metrics |= {prefix + name: values.mean() for name, values in {"loss": loss, **aux.metrics}.items()}
        updated |= aux.variables
    return grads, metrics, updated
