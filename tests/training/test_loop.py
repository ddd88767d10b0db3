"""The loop: what is logged, saved and shown when, and how it ends."""

import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.runs.checkpoints import Checkpoints
from diffjax.runs.state import TrainState
from diffjax.training import loop
from diffjax.training.logging import MetricsLog
from diffjax.training.nonfinite import after_skipped, after_sound, initial_health


def initial() -> TrainState:
    zero = jnp.zeros(())
    given = {"variables": {"params": {"w": zero}}, "ema": {"w": zero}, "optimizer": {"model": {"n": zero}}}
    return TrainState(step=jnp.zeros((), jnp.int32), **given, health=initial_health(["model"]))


def count(state, batch):
    """A step that adds the batch to w and reports it."""
    w, loss = state.variables["params"]["w"], jnp.reciprocal(batch)
    health = after_sound(state.health, {"model": loss}) if jnp.isfinite(loss) else after_skipped(state.health)
    w = w + batch if jnp.isfinite(loss) else w
    metrics = {"loss": loss, "grad_norm": w, "skipped": health.skipped, "skipped_in_a_row": health.in_a_row}
    return state.replace(step=state.step + 1, variables={"params": {"w": w}}, health=health), metrics


def run(path, batches, *, start=0, steps=6, step=count, state=None, every=2, limit=0, preview=lambda step, state: None):
    log, checkpoints = MetricsLog(path, start), Checkpoints(path / "checkpoints")
    try:
        return loop.run(
            step,
            state or initial(),
            iter(batches),
            start=start,
            schedule=loop.Schedule(steps=steps, log_every=2, sample_every=3, checkpoint_every=every),
            images=1,
            record=loop.Record(log, checkpoints, skip_limit=limit),
            preview=preview,
        )
    finally:
        checkpoints.close()
        log.close()


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def saved(path):
    return sorted(int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit())


BATCHES = np.arange(1.0, 10.0, dtype=np.float32)


def test_a_whole_run(tmp_path):
    shown = []
    state, stopped = run(tmp_path, BATCHES, preview=lambda step, state: shown.append((step, int(state.step))))
    assert stopped is None
    assert state.variables["params"]["w"] == BATCHES[:6].sum()
    assert saved(tmp_path) == [2, 4, 6]
    assert shown == [(3, 3), (6, 6)]
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]
    # At full precision: the text read back is the float32 of the step's own loss.
    assert [np.float32(line["loss"]) for line in lines(tmp_path)] == [np.float32(1) / b for b in BATCHES[[1, 3, 5]]]


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    batches = BATCHES.copy()
    batches[3] = bad  # step 4: its loss is nan or 1 / 0, and its parameters would be saved at once
    with pytest.raises(
        UserError, match=r"step 4: .*loss = (nan|inf).*last good checkpoint is that of step 2.*learning_rate"
    ):
        run(tmp_path, batches)
    assert saved(tmp_path) == [2]
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_steps_that_are_skipped_are_logged_and_counted(tmp_path):
    batches = BATCHES.copy()
    batches[[2, 4]] = np.nan
    state, stopped = run(tmp_path, batches, limit=1)
    assert stopped is None
    assert state.variables["params"]["w"] == np.delete(BATCHES[:6], [2, 4]).sum()
    assert {line["step"]: line["skipped"] for line in lines(tmp_path)} == {2: 0, 3: 1, 4: 1, 5: 2, 6: 2}
    assert {line["step"]: line["loss"] for line in lines(tmp_path)}[3] is None  # as JSON knows no NaN


def test_too_many_in_a_row_stop_the_run(tmp_path):
    batches = BATCHES.copy()
    batches[2:5] = np.nan
    with pytest.raises(loop.NotFinite, match=r"step 5: .* 2 steps before; .* is that of step 4") as raised:
        run(tmp_path, batches, limit=2, every=1)
    assert raised.value.step == 3
    assert raised.value.state.variables["params"]["w"] == BATCHES[:2].sum()


def test_a_spike_is_logged(tmp_path):
    def step(state, batch):
        state, metrics = count(state, batch)
        return state, metrics | {"loss_deviation": jnp.where(state.step == 3, 7.0, 0.0)}

    run(tmp_path, BATCHES, step=step)
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, 4, 6]


def test_time_spent_waiting_for_data_is_told(tmp_path, capsys):
    def slow():
        for batch in BATCHES:
            time.sleep(0.3)
            yield batch

    run(tmp_path, slow())
    assert max(line["data_wait"] for line in lines(tmp_path)) > 0.5
    assert "waits for data" in capsys.readouterr().out


@pytest.fixture
def released():
    """An event for work that is left, which then ends with the test."""
    event = threading.Event()
    yield event
    event.set()


def test_a_preview_is_left_at_a_signal(tmp_path, released):
    """It is not waited for, and the state is saved."""

    def preview(step, state):
        os.kill(os.getpid(), signal.SIGTERM)
        released.wait(60)

    before = time.monotonic()
    _, stopped = run(tmp_path, BATCHES, every=0, preview=preview)
    assert stopped == signal.SIGTERM
    assert saved(tmp_path) == [3]
    assert time.monotonic() - before < 30


def test_a_compilation_is_left_at_a_signal(tmp_path, released):
    def step(state, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        released.wait(60)

    _, stopped = run(tmp_path, BATCHES, step=step)
    assert stopped == signal.SIGTERM
    assert saved(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends(tmp_path, number):
    before = signal.getsignal(number)

    def interrupted():
        for i, batch in enumerate(BATCHES):
            if i == 2:  # while step 3 is being prepared
                os.kill(os.getpid(), number)
            yield batch

    state, stopped = run(tmp_path, interrupted(), every=0)
    assert stopped == number
    assert state.step == 3
    assert saved(tmp_path) == [3]
    assert signal.getsignal(number) == before


def test_signals_during_the_save_do_not_abort_it(tmp_path, monkeypatch):
    """Schedulers and terminals send several, some while the checkpoint is written in the background."""
    save = Checkpoints.save

    def interrupted_save(self, step, state):
        save(self, step, state)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)

    def twice():
        for i, batch in enumerate(BATCHES):
            if i == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Checkpoints, "save", interrupted_save)
    _, stopped = run(tmp_path, twice(), every=0)
    assert stopped == signal.SIGTERM
    assert saved(tmp_path) == [3]


def test_a_signal_after_the_last_step_lets_its_save_be_completed(tmp_path, monkeypatch):
    wait = Checkpoints.wait

    def interrupted_wait(self):
        os.kill(os.getpid(), signal.SIGTERM)
        wait(self)

    monkeypatch.setattr(Checkpoints, "wait", interrupted_wait)
    _, stopped = run(tmp_path, BATCHES)
    assert stopped == signal.SIGTERM
    assert saved(tmp_path)[-1] == 6


DAMAGED = {
    "not UTF-8": b'{"step": 2, "loss": \xff}\n',
    "no step": b'{"step": null, "loss": 1.0}\n',
    "a text for a step": b'{"step": "2"}\n',
    "no object": b"[1]\n",
    "a number": b"3\n",
    "deep": b"[" * 100_000 + b"\n",
    "blank": b"\n",
}


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_of_metrics_is_dropped_and_counted(damaged, tmp_path, capsys):
    good = b'{"step": 2, "loss": 0.25}\n'
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(good + DAMAGED[damaged] + b'{"step": 4, "loss": "NaN"}\n' + b'{"step": 6}\n' + b'{"step": 8, "lo')
    MetricsLog(tmp_path, 4).close()
    assert path.read_bytes() == good + b'{"step": 4, "loss": "NaN"}\n'
    assert capsys.readouterr().err == f"{path}: 1 damaged line dropped, the first is line 2\n"


def test_a_missing_record_is_printed(tmp_path, capsys):
    MetricsLog(tmp_path, 4).close()
    assert "metrics.jsonl: is missing, so the record starts again at step 4" in capsys.readouterr().err


def test_continuing_drops_the_lines_of_steps_that_are_made_again(tmp_path):
    run(tmp_path, BATCHES)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "los')  # a kill in the middle of a line
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), initial())
    state = checkpoints.restore(template, 4)
    checkpoints.close()
    state, _ = run(tmp_path, BATCHES[4:], start=4, steps=8, state=state)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8]
    assert state.variables["params"]["w"] == BATCHES[:8].sum()
