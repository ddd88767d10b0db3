"""The held-out loss: losses of training on fixed batches of examples that are not trained on."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax import data
from diffjax.data.records import MissingSplit
from diffjax.data.sources import OpenedSets, Source
from diffjax.errors import UserError
from diffjax.models.base import Model
from diffjax.progress import Compilation
from diffjax.runs.datasets import open_held_out_examples
from diffjax.runs.state import TrainState, ema_variables
from diffjax.training.sharding import Devices
from diffjax.training.step import example_keys, group_prefix, make_step_context
from diffjax.typing import Batch, PRNGKey, Scalar, Variables


def open_held_out(config: ConfigDict, opened: OpenedSets | None = None) -> Source | None:
    """Opens the held-out examples of a config: its test split, else the rest of a slice such as train[:90%].

    Args:
      opened: sets that need not be opened again.

    Returns:
      None if `train.eval_every` is 0, or if all examples are trained on, which is printed.

    Raises:
      UserError: the held-out examples cannot be read.
    """
    if not config.train.get("eval_every", 0):
        return None
    try:
        return open_held_out_examples(config, opened)
    except MissingSplit:
        c = config.data
        what = f"no held-out loss: data.name={c.name} has no examples besides data.split={c.split}"
        hold_out = "set data.split=train[:90%] to hold out the rest, or " if c.name != "pairs" else "set "
        print(f"{what}; {hold_out}train.eval_every=0")
        return None
    except UserError as error:
        raise UserError(f"held-out examples: {error}; or set train.eval_every=0") from error


def has_losses(model: Model) -> bool:
    """Returns whether a model has parameters whose loss is minimised; principal components have none."""
    return bool(jax.tree.leaves(model.variable_shapes["params"]))


def make_evaluate(
    config: ConfigDict, model: Model, source: Source, fields: tuple[str, ...], devices: Devices, frozen: Variables
) -> Callable[[TrainState], dict[str, float]]:
    """Returns a function from a training state to the losses on held-out examples, with averaged parameters.

    The batches and the random keys are the same at every call, and different from those of training.

    Args:
      source: held-out examples.
      fields: fields of the examples that the model is trained on.
      frozen: variables of trained parts, on the devices.

    Returns:
      A function that returns means over `train.eval_batches` batches, or over all whole batches if there are fewer:
      "eval/loss", and the metrics that the loss has per example; of several groups of parameters "eval/GROUP/loss".
    """
    c = config.train
    size = c.batch_size // c.accumulate
    batches = data.Batches(
        source,
        batch_size=size,
        seed=config.seed,
        keys=fields,
        share=(jax.process_index(), jax.process_count()),
    )
    count = max(1, min(c.eval_batches * c.accumulate, len(source) // size))
    compilation = Compilation("the held-out loss")

    def losses(*arguments: Any) -> dict[str, Scalar]:
        compilation.start()
        return held_out_losses(model, held_out_key(config), *arguments)

    program = devices.compile_global(losses)

    def evaluate(state: TrainState) -> dict[str, float]:
        variables = devices.as_global(ema_variables(state)), devices.as_global(state.step)
        results = []
        for number, batch in enumerate(data.prefetch(map(batches.batch, range(count)), devices.put_global_batch)):
            with compilation:
                results.append(program(*variables, batch, np.int32(number), frozen))
        means = jax.tree.map(lambda *values: float(np.mean(values, dtype=np.float64)), *jax.device_get(results))
        return {f"eval/{name}": value for name, value in means.items()}

    return evaluate


def held_out_key(config: ConfigDict) -> PRNGKey:
    """Returns the random key of held-out losses."""
    return jax.random.fold_in(jax.random.key(config.seed), 2)  # 0 and 1 are those of initial weights and of steps


def held_out_losses(
    model: Model,
    key: PRNGKey,
    variables: Variables,
    step: Scalar,
    batch: Batch,
    number: Scalar,
    frozen: Mapping[str, Variables],
) -> dict[str, Scalar]:
    """Returns the losses of a batch and their metrics per example, as means.

    Args:
      key: random key of all batches.
      variables: variables without "frozen".
      step: number of training steps, which sets weights that change in training.
      number: number of the batch, from 0.
      frozen: variables of trained parts.
    """
    size = len(batch["index"])
    context = make_step_context(step, key, size, size)._replace(key=jax.random.fold_in(key, number))
    keys, metrics = example_keys(context, batch), {}
    for group, loss_fn in model.losses.items():
        loss, aux = loss_fn({**variables, "frozen": frozen}, batch, keys, context)
        values = {"loss": loss, **aux.metrics}
        metrics |= {
            group_prefix(model.losses, group) + name: value.mean() for name, value in values.items() if jnp.ndim(value)
        }
    return metrics
