"""Members in their folders: each leaves what it would have left by itself."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from diffjax import data
from diffjax.ensemble.program import check_together, compile_together, distinct_seeds, fresh_state, restored_state
from diffjax.errors import UserError
from diffjax.runs.checkpoints import Checkpoints, damage
from diffjax.runs.loading import build_system, open_source
from diffjax.runs.state import TrainState
from diffjax.runs.workdir import Workdir
from diffjax.training import loop, resume
from diffjax.training.logging import MetricsLog
from diffjax.training.sharding import Devices
from diffjax.training.train import keep_failed, keys_of, with_tokens
from diffjax.typing import System


class Stopped(Exception):
    """A signal ended the training once all members were saved; the same call goes on."""

    def __init__(self, signal: int):
        super().__init__(f"stopped by signal {signal} after saving; the same call continues")
        self.signal = signal


def train_together(configs: Sequence[ConfigDict], workdirs: Sequence[Workdir]) -> list[str | None]:
    """Trains each config in its folder, or goes on from the last step that all unfinished ones have saved.

    A member leaves what `training.train` would have left, up to rounding, but no sheets of samples. One whose loss or
    gradient is not finite is dropped: its last good checkpoint and what the step was given are kept, error.txt in its
    folder says why, and the others go on.

    Returns:
      For each member None, or its error in one line.

    Raises:
      UserError: what `check_together` raises, and what `training.train` does but for a loss that is not finite.
      Stopped: on SIGTERM or Ctrl-C, once all members are saved.
    """
    check_together(configs)
    members = [_Member(*one) for one in zip(configs, workdirs, strict=True)]
    if len({workdir.path.resolve() for workdir in workdirs}) < len(members):
        raise UserError("runs that are trained together need a folder each")
    for member in members:
        system = build_system(member.config, training=True)  # what does not fit is said here
        if any(member.saved) or member.workdir.error.exists():
            resume.check_config(member.config, member.workdir)
    unfinished = [member for member in members if not (member.finished or member.error)]
    if unfinished:
        _train(unfinished, system)
    return [member.error for member in members]


@dataclasses.dataclass(frozen=True)
class _Member:
    config: ConfigDict
    workdir: Workdir

    @property
    def saved(self) -> set[int]:
        """The steps that it can go on from."""
        steps = [path for path in self.workdir.checkpoints.glob("*") if path.name.isdigit()]
        return {0} | {int(path.name) for path in steps if damage(path) is None}

    @property
    def finished(self) -> bool:
        return max(self.saved) >= self.config.train.steps

    @property
    def error(self) -> str | None:
        """Why the member was dropped: kept on disk, as the others are not to wait for it again after a kill."""
        there = self.workdir.error.exists() and not self.finished
        return self.workdir.error.read_text(errors="replace") if there else None


def _train(members: Sequence[_Member], system: System) -> None:
    """Trains members none of which is finished. `system` is that of any, for what all have in common."""
    configs, workdirs = [member.config for member in members], [member.workdir for member in members]
    config = configs[0]  # likewise
    devices = Devices.create(**config.parallel)
    devices.check_batch(config.train.batch_size, config.train.accumulate)
    source = open_source(config, config.data.split)
    with contextlib.ExitStack() as stack:
        for workdir in workdirs:
            stack.enter_context(workdir.locked())
        source = with_tokens(config, system, source, workdirs)
        given = {"batch_size": config.train.batch_size, "flip": config.data.flip, "keys": keys_of(system)}
        streams = [data.Batches(source, seed=seed, **given) for seed in distinct_seeds(configs)]
        ahead = {"threads": max(1, 4 // len(streams)), "buffer": max(2, 16 // len(streams))}  # as for one run, in all
        start = max(set.intersection(*(member.saved for member in members)))
        # Two at least: until all members have written their next checkpoint, they need the one before.
        keep_last = config.train.keep_last and max(2, config.train.keep_last)

        def closed_after(thing):
            return stack.enter_context(contextlib.closing(thing))

        checkpoints = [
            closed_after(Checkpoints(workdir.checkpoints, keep_last=keep_last, keep_every=config.train.keep_every))
            for workdir in workdirs
        ]
        if start:
            state = restored_state(configs, system, devices, checkpoints, start)
        else:
            state = fresh_state(configs, system, devices, [stream.batch(0) for stream in streams])
        step, put = compile_together(configs, devices, len(source))
        frozen = devices.put_everywhere(system.frozen)
        for member in members:
            member.workdir.write_config(member.config)  # only now: the checkpoint may not fit it
        logs = [closed_after(MetricsLog(workdir.path, start)) for workdir in workdirs]
        limit = config.train.get("skip_limit", 0)
        records = [loop.Record(*one, system.objective.warn, limit) for one in zip(logs, checkpoints, strict=True)]
        print(
            f"{len(members)} runs of {config.system} on {config.data.name} together, {len(source):,} examples, "
            f"{devices.count} {jax.default_backend()} device{'s' * (devices.count > 1)}"
            + (f", continuing at step {start}" if start else "")
        )
        batches = streams * (len(members) // len(streams))
        with contextlib.suppress(_NoneLeft):
            _, stopped = loop.run(
                lambda state, batch: step(state, batch, frozen),
                state,
                data.prefetch(zip(*(stream.iterate(start, **ahead) for stream in streams), strict=True), put),
                start=start,
                schedule=loop.Schedule(
                    **{name: config.train[name] for name in ("steps", "log_every", "checkpoint_every")}, sample_every=0
                ),
                images=len(members) * config.train.batch_size,
                record=_Records(zip(members, batches, records, strict=True)),
            )
            if stopped:
                raise Stopped(stopped)


class _NoneLeft(Exception):
    """Every member was dropped."""


class _Records:
    """The records of all members, as the one that the loop keeps."""

    def __init__(self, members: Iterable[tuple[_Member, data.Batches, loop.Record]]):
        self._running = dict(enumerate(members))  # by place in the stack, which one that is dropped leaves empty

    def settle(
        self,
        step: int,
        metrics: Mapping[str, Any],
        state: Callable[[], TrainState],
        *,
        due: bool,
        say: Callable[[str], None],
        speed: Mapping[str, float],
    ) -> dict[str, float]:
        """Takes the metrics of each, and drops those past their limit. Returns the means over the others."""
        found = []
        for place, (member, batches, record) in list(self._running.items()):
            own = {name: values[place] for name, values in metrics.items()}
            own_state = lambda place=place: _member(state(), place)  # noqa: E731
            tell = lambda text, path=member.workdir.path: say(f"{path}: {text}")  # noqa: E731
            try:
                found.append(record.settle(step, own, own_state, due=due, say=tell, speed=speed))
            except loop.NotFinite as error:
                told = keep_failed(member.workdir, batches, error)
                tell(told)
                member.workdir.error.write_text(told)
                del self._running[place]
        if not found:
            raise _NoneLeft
        return {name: sum(own[name] for own in found) / len(found) for name in found[0]}

    def save(self, step: int, state: TrainState) -> None:
        for place, (_, _, record) in self._running.items():
            record.save(step, _member(state, place))

    def wait(self) -> None:
        for _, _, record in self._running.values():
            record.wait()


def _member(state: TrainState, place: int) -> TrainState:
    """Of a stack of states one member's."""
    stacked = {name: getattr(state, name) for name in ("variables", "ema", "optimizer", "health")}
    return state.replace(**_at(stacked, place))


@jax.jit
def _at(tree, place):
    return jax.tree.map(lambda leaf: leaf[place], tree)
