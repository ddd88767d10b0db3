"""The training step of every model: gradients of each group of parameters, an optax update, and the EMA."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import optax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array

from diffjax.models.base import Model
from diffjax.runs.power_functions import exponent, name_of, update_weight
from diffjax.runs.state import TrainState
from diffjax.training import nonfinite
from diffjax.training.optimization import averaged_params
from diffjax.typing import Batch, LossFn, PRNGKey, PRNGKeys, Scalar, StepContext, Variables

Metrics = Mapping[str, Scalar]
Step = Callable[[TrainState, Batch, Mapping[str, Variables]], tuple[TrainState, Metrics]]
Gradients = tuple[dict[str, Any], dict[str, Scalar], dict[str, Any]]  # gradients, metrics, mutable collections


def make_step(
    model: Model,
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    learning_rates: Mapping[str, optax.Schedule] = MappingProxyType({}),
    key: PRNGKey,
    ema_decay: float,
    ema_lengths: Sequence[float] = (),
    examples: int,
    accumulate: int = 1,
    max_consecutive_skips: int = 0,
    trained: Mapping[str, Any] | None = None,
    update_every: Mapping[str, int] = MappingProxyType({}),
    axis_name: str | None = None,
) -> Step:
    """Returns the training step, a pure function of (state, batch, frozen variables).

    The gradients of all groups are taken at the old parameters. `model.constrain` is applied
    after the update. The randomness of an example comes from (key, step,
    its index in the global batch), so the result depends neither on the number of devices nor on `accumulate`.

    A step with non-finite gradients or metrics is skipped: it changes only the counts in `TrainState.health`. After
    more than `max_consecutive_skips` consecutive skips every step is skipped, which preserves the state before the
    first of them.

    The step returns the metrics of the losses; of each group "grad_norm", the norm of its gradient before clipping, and
    "learning_rate"; "skipped" (number of skipped steps), "consecutive_skips", and "loss_deviation", in standard
    deviations of the losses of the last 100 steps. With several groups, names start with that of the group and a slash.
    Of a group in `update_every` there is "is_updated", 1 or 0; if 0, its other metrics are 0 instead of computed.

    Args:
      optimizers: optimiser of each group of parameters.
      learning_rates: learning rate of each group by number of updates, which its optimiser applies; logged only.
      key: random key of the run.
      ema_decay: decay of the EMA; at step s it is min(ema_decay, (1 + s) / (10 + s)), so that the average forgets the
        initial weights. The average of an optimiser that computes one itself takes the place of the EMA.
      ema_lengths: relative lengths of the power-function averages in the state.
      examples: number of examples per epoch.
      accumulate: number of equal parts of the batch, processed one after another.
      max_consecutive_skips: number of consecutive steps that may be skipped.
      trained: tree of booleans for each group of parameters, with the structure of its parameters; the others are
        frozen: their gradients are zero, and their average is their value. None: all are trained.
      update_every: steps per update of groups that are not updated in every step; skipped steps do not count.
      axis_name: device axis, if the step runs as one program per device on a share of the batch; None: the step gets
        the global batch.
    """

    mean = functools.partial(lax.pmean, axis_name=axis_name) if axis_name else _identity
    gather = functools.partial(lax.all_gather, axis_name=axis_name, tiled=True) if axis_name else _identity
    prefix = functools.partial(group_prefix, model.losses)
    exponents = {name_of(length): exponent(length) for length in ema_lengths}
    losses_of_trained = _freeze(model.losses, trained) if trained else model.losses
    update_every = {group: every for group, every in update_every.items() if every > 1}

    def step(state: TrainState, batch: Batch, frozen: Mapping[str, Variables] = {}) -> tuple[TrainState, Metrics]:
        batch_size = len(batch["index"]) * (lax.axis_size(axis_name) if axis_name else 1)
        context = make_step_context(state.step, key, batch_size, examples)._replace(mean=mean, gather=gather)
        keys = example_keys(context, batch)
        variables = {**state.variables, "ema": state.ema, "frozen": frozen}
        is_due = {group: state.health.updates % every == 0 for group, every in update_every.items()}
        compute = functools.partial(_gradients, losses_of_trained, is_due=is_due)
        grads, metrics, collections = mean(
            _accumulate(compute, variables, batch, keys, context, accumulate, model.group_size)
        )

        metrics = {**metrics, **{f"{prefix(group)}grad_norm": optax.global_norm(grads[group]) for group in optimizers}}
        if model.summarize:
            metrics |= {prefix("model") + name: value for name, value in model.summarize(collections).items()}

        params, optimizer = dict(state.variables["params"]), {}
        for group, opt in optimizers.items():
            updates, optimizer[group] = opt.update(grads[group], state.optimizer[group], params[group])
            params[group] = model.constrain(optax.apply_updates(params[group], updates))
            if group in is_due:
                old = state.variables["params"][group], state.optimizer[group]
                params[group], optimizer[group] = _where(is_due[group], (params[group], optimizer[group]), old)
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        averages: Any = optax.incremental_update(params, state.ema, 1.0 - decay)
        ema = {**averages, **_own_averages(optimizer, params)}
        power_ema = {
            name: optax.incremental_update(params, state.power_ema[name], update_weight(gamma, state.step + 1))
            for name, gamma in exponents.items()
        }
        if trained:
            ema = _replace_frozen(trained, ema, params)
            power_ema = {name: _replace_frozen(trained, average, params) for name, average in power_ema.items()}
        losses = {group: metrics[f"{prefix(group)}loss"] for group in optimizers}
        new = state.replace(
            variables={**state.variables, **collections, "params": params},
            ema=ema,
            optimizer=optimizer,
            power_ema=power_ema,
            health=nonfinite.record_update(state.health, losses, is_due),
        )
        old = state.replace(health=nonfinite.record_skip(state.health))
        step_ok = nonfinite.is_finite(metrics) & (state.health.consecutive_skips <= max_consecutive_skips)
        new = _where(step_ok, new, old).replace(step=state.step + 1)
        return new, {
            **metrics,
            **{
                f"{prefix(group)}learning_rate": jnp.asarray(schedule(state.health.updates), jnp.float32)
                for group, schedule in learning_rates.items()
            },
            "skipped": new.health.skipped,
            "consecutive_skips": new.health.consecutive_skips,
            "loss_deviation": nonfinite.deviation(state.health, losses, is_due),
            **{f"{prefix(group)}is_updated": due.astype(jnp.float32) for group, due in is_due.items()},
        }

    return step


def make_step_context(step: Scalar, key: PRNGKey, batch_size: int, examples: int) -> StepContext:
    """Returns the context of a step on one device.

    Args:
      step: number of steps so far.
      key: random key of the run.
      examples: number of examples per epoch.
    """
    new_epoch = step % max(1, round(examples / batch_size)) == 0
    return StepContext(step, jax.random.fold_in(key, step), batch_size, new_epoch, _identity, _identity)


def example_keys(context: StepContext, batch: Batch) -> PRNGKeys:
    """Returns one random key per example: [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(context.key, batch["index"])


def _identity(tree: Any) -> Any:
    return tree


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(functools.partial(jnp.where, condition), new, old)


def _own_averages(optimizer: Mapping[str, optax.OptState], params: Any) -> dict[str, Any]:
    """Returns the averages of the groups whose optimiser computes one."""
    averages = {group: averaged_params(state, params[group]) for group, state in optimizer.items()}
    return {group: average for group, average in averages.items() if average is not None}


def _replace_frozen(trained: Mapping[str, Any], average: Any, params: Any) -> Any:
    """Returns an average with the values of the parameters that are not `trained`, as sums round."""
    return jax.tree.map(lambda is_trained, leaf, param: leaf if is_trained else param, trained, average, params)


def _freeze(losses: Mapping[str, LossFn], trained: Mapping[str, Any]) -> dict[str, LossFn]:
    """Returns the losses with zero gradients for the parameters of their group that are not `trained`."""

    def freeze(group: str, loss_fn: LossFn) -> LossFn:
        def frozen_loss(variables, *arguments):
            params = jax.tree.map(
                lambda is_trained, param: param if is_trained else lax.stop_gradient(param),
                trained[group],
                variables["params"][group],
            )
            return loss_fn({**variables, "params": {**variables["params"], group: params}}, *arguments)

        return frozen_loss

    return {group: freeze(group, loss_fn) for group, loss_fn in losses.items()}


def _accumulate(
    compute: Callable[..., Gradients],
    variables: Variables,
    batch: Batch,
    keys: PRNGKeys,
    context: StepContext,
    parts: int,
    group: int,
) -> Gradients:
    """Returns the means of gradients, metrics and mutable collections over parts of the batch.

    Args:
      parts: number of parts.
      group: number of consecutive examples that stay together.
    """
    if parts == 1:
        return compute(variables, batch, keys, context)
    # Part i has groups i, i + parts, ...: the examples of a batch that is split over devices stay where they are.
    split = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(-1, parts, group, *x.shape[1:]), 1, 0).reshape(parts, -1, *x.shape[1:]),
        (batch, keys),
    )

    def gradients(part: tuple[Batch, PRNGKeys]) -> Gradients:
        batch, keys = part
        return compute(variables, batch, keys, context)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradients(part)), None

    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(gradients, first)
    total, _ = lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), split)
    return jax.tree.map(lambda x: x / parts, total)


def _gradients(
    losses: Mapping[str, LossFn],
    variables: Variables,
    batch: Batch,
    keys: PRNGKeys,
    context: StepContext,
    *,
    is_due: Mapping[str, Array],
) -> Gradients:
    """Returns gradients by group, metrics, and new mutable collections.

    Of a group that is not due, gradients and metrics are 0 and collections unchanged; nothing is computed.
    """
    grads, metrics, collections = {}, {}, {}
    for group, loss_fn in losses.items():

        def mean_loss(params, group=group, loss_fn=loss_fn):
            loss, aux = loss_fn({**variables, "params": {**variables["params"], group: params}}, batch, keys, context)
            return loss.mean(), aux

        def compute(group=group, mean_loss=mean_loss):
            (loss, aux), grad = jax.value_and_grad(mean_loss, has_aux=True)(variables["params"][group])
            means = {name: values.mean() for name, values in {"loss": loss, **aux.metrics}.items()}
            return grad, means, aux.variables

        if group in is_due:
            grads[group], means, updated = lax.cond(
                is_due[group], compute, functools.partial(_zeros, compute, variables)
            )
        else:
            grads[group], means, updated = compute()
        metrics |= {group_prefix(losses, group) + name: value for name, value in means.items()}
        collections |= updated
    return grads, metrics, collections


def _zeros(compute: Callable[[], tuple[Any, Any, Any]], variables: Variables) -> tuple[Any, Any, Any]:
    """Returns zeros in the place of a group's gradients and metrics, and the old values of its collections."""
    shapes = jax.eval_shape(compute)
    grad, means = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[:2])
    return grad, means, {name: variables[name] for name in shapes[2]}


def group_prefix(losses: Mapping[str, LossFn], group: str) -> str:
    """Returns the prefix of a group's metrics: its name if there are several."""
    return f"{group}/" if len(losses) > 1 else ""
