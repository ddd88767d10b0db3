"""The initial weights of a run from another run, as the field `train.start` names it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax.cluster import multihost
from diffjax.data.tokenizer import Tokenizer
from diffjax.errors import UserError, validate_names
from diffjax.models.base import Model
from diffjax.models.lora import is_lora
from diffjax.models.parameter_paths import check_patterns, flatten, matches, path_of, unflatten
from diffjax.runs.dependencies import part_config, referenced_run
from diffjax.runs.loading import build_model, config_with_part, load
from diffjax.runs.state import TrainState
from diffjax.runs.workdir import Workdir

_MAX_NAMES = 8


class StartWeights(NamedTuple):
    """Weights of another run.

    Attributes:
      variables: arrays by path, such as "params/model/conv_in/kernel" and "codebook/...".
      ema: averaged parameters by path, such as "model/conv_in/kernel".
      tokenizer: tokenizer of captions; None: the run reads no captions.
      summary: description for the log.
    """

    variables: Mapping[str, Any]
    ema: Mapping[str, Any]
    tokenizer: Tokenizer | None
    summary: str

    @property
    def averaged_params(self) -> Mapping[str, Any]:
        """The averaged parameters as nested dictionaries, on the host."""
        return unflatten({path: np.asarray(leaf) for path, leaf in self.ema.items()})

    @property
    def without_params(self) -> "StartWeights":
        """The state that is not parameters, such as a codebook."""
        others = {name: value for name, value in self.variables.items() if not name.startswith("params/")}
        return self._replace(variables=others, ema={})

    def apply(self, state: TrainState) -> TrainState:
        """Returns a new state with these weights; others stay as they are."""
        return state.replace(variables=_replace(state.variables, self.variables), ema=_replace(state.ema, self.ema))


def read_start(
    config: ConfigDict, model: Model, workdir: Workdir | None = None, parent: ConfigDict | None = None
) -> StartWeights | None:
    """Reads the weights that a run starts from.

    Args:
      config: config of the run.
      model: its model.
      workdir: its folder; None: it has none, so `train.start` must not name a part.
      parent: config that this one is a part of.

    Returns:
      The weights; None if `train.start` names no run, or a part that is not trained yet, whose shapes are checked.

    Raises:
      UserError: the run cannot be read, or a weight of the model is missing there or has another shape, and
        `train.start_fresh` does not list it.
    """
    path, fresh = config.train.get("start", ""), config.train.get("start_fresh", ())
    validate_names("train.start_fresh", fresh)
    if not path:
        if fresh:
            raise UserError(f"train.start_fresh={fresh}: requires train.start; set it to the folder of a run")
        return None
    folder = workdir and workdir.path
    owner = config_with_part(config, "train.start", parent, folder)
    source = Workdir(referenced_run(config, "train.start", folder))
    # With LoRA weights are not completed by zeros, which might not be among the adapted weights.
    complete = (lambda weights: weights) if is_lora(config) else model.complete
    if owner is not None and not source.has_weights:
        untrained = build_model(part_config(owner, path[1:]), parent=owner, abstract=True)
        _taken(config, model, jax.eval_shape(complete, flatten(untrained.variable_shapes)))
        return None
    try:
        averaged = load(source.path)
        last = load(source.path, averaged.step, averaged=False)
        tokenizer = averaged.tokenizer if model.text else None
    except UserError as error:
        raise UserError(f"train.start={path}: {error}") from error
    if not averaged.system.losses:
        raise UserError(f"train.start={path}: is a pipeline, without weights of its own; name one of its parts")
    theirs, ema = (complete(flatten({**run.variables, "frozen": {}})) for run in (last, averaged))
    taken = _taken(config, model, theirs)
    num_fresh, unused = len(flatten(model.variable_shapes)) - len(taken), len(theirs.keys() - taken)
    return StartWeights(
        variables={name: theirs[name] for name in taken},
        ema={_short(name): ema[name] for name in taken if name.startswith("params/")},
        tokenizer=tokenizer,
        summary=_consistency_note(config)
        + f"starts from {path}, step {averaged.step}: {len(taken)} arrays taken"
        + (f", {num_fresh} fresh" if num_fresh else "")
        + (f", {unused} of the run unused" if unused else ""),
    )


def _taken(config: ConfigDict, model: Model, theirs: Mapping[str, Any]) -> set[str]:
    """Returns the paths of the weights that a run takes. Raises UserError if some are missing or of other shapes."""
    wanted, fresh = flatten(model.variable_shapes), config.train.get("start_fresh", ())
    check_patterns("train.start_fresh", fresh, map(_short, wanted))
    taken = {name for name in wanted if not matches(_short(name), fresh)}
    if not taken:
        raise UserError(
            f"train.start_fresh={fresh}: matches all weights, so none are of train.start; unset one of them"
        )
    _check_shapes(config.train.start, {name: wanted[name] for name in taken}, theirs)
    return taken


def _consistency_note(config: ConfigDict) -> str:
    """Returns a line for the training of a consistency model; empty for other models."""
    parameterization = str(config.get("diffusion", {}).get("parameterization", ""))
    loss = str(config.get("diffusion", {}).get("loss", ""))
    if not parameterization.startswith("consistency") or "consistency" in loss:
        return ""
    return (
        f"diffusion.parameterization={parameterization}: diffusion.loss={loss} is one of denoising, so "
        "one-step samples become worse; set it to consistency, or sample the new run with several steps\n"
    )


def _check_shapes(path: str, wanted: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises UserError with the names of weights that a run does not have, or has in another shape."""
    differing = [f"{_short(name)} (missing)" for name in sorted(wanted.keys() - theirs.keys())]
    for name in sorted(wanted.keys() & theirs.keys()):
        actual, expected = theirs[name], wanted[name]
        if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
            differing.append(f"{_short(name)} ({_shape(actual)} instead of {_shape(expected)})")
    if differing:
        more = f" and {len(differing) - _MAX_NAMES} more" if len(differing) > _MAX_NAMES else ""
        raise UserError(
            f"train.start={path}: does not fit the model: {', '.join(differing[:_MAX_NAMES])}{more}; make the configs "
            "agree, or list them in train.start_fresh to initialise them at random"
        )


def _shape(leaf: Any) -> str:
    return "x".join(map(str, leaf.shape)) or "a number"


def _short(name: str) -> str:
    """Returns the path of a parameter within the parameters; the path of another variable is unchanged."""
    return name.removeprefix("params/")


def _replace(tree: Any, values: Mapping[str, Any]) -> Any:
    def replace(keys, leaf):
        value = values.get(path_of(keys))
        return leaf if value is None else multihost.put(np.array(value), leaf.sharding)

    return jax.tree_util.tree_map_with_path(replace, tree)
