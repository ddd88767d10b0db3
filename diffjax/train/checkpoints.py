"""Checkpoints through Orbax: written in the background, atomically, each with all that continuing needs."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffjax.errors import UserError
from diffjax.train.state import TrainState
from diffjax.typing import Variables

_PARTS = ("variables", "ema", "optimizer")  # apart, so that sampling reads no optimiser state


class Checkpoints:
    """The checkpoints of one run: the last `keep_last` (0: all), and every step divisible by `keep_every` (0: none)."""

    def __init__(self, directory: Path, *, keep_last: int = 0, keep_every: int = 0):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep_last or None, keep_period=keep_every or None)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options, item_names=_PARTS)
        self._directory = directory

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Copies `state` off the device, then writes in the background. A step that is already saved is left alone."""
        if step not in self._manager.all_steps():
            parts = {name: ocp.args.StandardSave(getattr(state, name)) for name in _PARTS}
            self._manager.save(step, args=ocp.args.Composite(**parts))

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """The state at `step` (None: the last), laid out as `template`, whose leaves are jax.ShapeDtypeStruct."""
        step = self._existing(step)
        parts = self._restore({name: getattr(template, name) for name in _PARTS}, step)
        return TrainState(step=jax.device_put(np.int32(step), template.step.sharding), **parts)

    def restore_ema(self, template: Variables, step: int | None = None) -> Variables:
        """The variables at `step` with averaged parameters, which sampling needs, with the shapes of `template`.

        On one device of this process, on whichever they were trained.
        """
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), template)
        restored = self._restore({"variables": template, "ema": template["params"]}, self._existing(step))
        return {**restored["variables"], "params": restored["ema"]}

    def _existing(self, step: int | None) -> int:
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(f"no checkpoint in {self._directory}: train first, or point --workdir at a trained run")
        step = steps[-1] if step is None else step
        if step not in steps:
            there = ", ".join(map(str, steps))
            raise UserError(f"no checkpoint of step {step} in {self._directory}; there are {there}")
        return step

    def _restore(self, parts: dict, step: int) -> dict:
        args = {name: ocp.args.StandardRestore(template) for name, template in parts.items()}
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
        except (ValueError, KeyError) as error:
            first_line = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"checkpoint {step} in {self._directory} does not fit this config's model ({first_line}): "
                "use the config it was trained with, or another --workdir"
            ) from error

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()
