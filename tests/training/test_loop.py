"""The training loop: what is logged, saved and previewed at which step, and how it ends."""

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
from diffjax.runs.state import TrainState, initial_health
from diffjax.training import loop
from diffjax.training.logging import MetricsLog
from diffjax.training.metric_means import MetricMeans
from diffjax.training.nonfinite import record_skip, record_update


def initial() -> TrainState:
    zero = jnp.zeros(())
    leaves = {"variables": {"params": {"w": zero}}, "ema": {"w": zero}, "optimizer": {"model": {"n": zero}}}
    return TrainState(step=jnp.zeros((), jnp.int32), **leaves, health=initial_health(["model"]))


def count(state, batch):
    """A step that adds the batch to w and reports it."""
    w, loss = state.variables["params"]["w"], jnp.reciprocal(batch)
    health = record_update(state.health, {"model": loss}) if jnp.isfinite(loss) else record_skip(state.health)
    w = w + batch if jnp.isfinite(loss) else w
    metrics = {"loss": loss, "grad_norm": w, "skipped": health.skipped, "consecutive_skips": health.consecutive_skips}
    return state.replace(step=state.step + 1, variables={"params": {"w": w}}, health=health), metrics


def run(
    path,
    batches,
    *,
    start=0,
    steps=6,
    step=count,
    state=None,
    every=2,
    log_every=2,
    eval_every=0,
    limit=0,
    on_saved=lambda step: None,
    **options,
):
    path.mkdir(exist_ok=True)
    log, checkpoints = MetricsLog(path, start), Checkpoints(path / "checkpoints", on_saved=on_saved)
    try:
        return loop.run(
            step,
            state or initial(),
            iter(batches),
            start=start,
            intervals=loop.Intervals(
                steps=steps, log_every=log_every, sample_every=3, checkpoint_every=every, eval_every=eval_every
            ),
            batch_size=1,
            recorder=loop.Recorder(log, checkpoints, max_consecutive_skips=limit),
            **options,
        )
    finally:
        checkpoints.close()
        log.close()


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def saved(path):
    return sorted(int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit())


def restore(path, step):
    """Returns the state of a checkpoint."""
    checkpoints = Checkpoints(path / "checkpoints")
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), initial())
    state = checkpoints.restore(template, step)
    checkpoints.close()
    return state


BATCHES = np.arange(1.0, 10.0, dtype=np.float32)


def test_intervals_of_logging_saving_and_previews(tmp_path):
    shown = []
    state, stopped = run(tmp_path, BATCHES, preview=lambda step, state: shown.append((step, int(state.step))))
    assert stopped is None
    assert state.variables["params"]["w"] == BATCHES[:6].sum()
    assert saved(tmp_path) == [2, 4, 6]
    assert shown == [(3, 3), (6, 6)]
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_non_finite_loss_stops_the_run(tmp_path, bad):
    batches = BATCHES.copy()
    batches[3] = bad  # step 4: its loss is nan or 1 / 0, and its parameters would be saved at once
    with pytest.raises(UserError, match=r"step 4: .*loss = (nan|inf).*last checkpoint is of step 2.*learning_rate"):
        run(tmp_path, batches)
    assert saved(tmp_path) == [2]
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_skipped_steps_are_logged_and_counted(tmp_path):
    batches = BATCHES.copy()
    batches[[2, 4]] = np.nan
    state, stopped = run(tmp_path, batches, limit=1)
    assert stopped is None
    assert state.variables["params"]["w"] == np.delete(BATCHES[:6], [2, 4]).sum()
    assert {line["step"]: line["skipped"] for line in lines(tmp_path)} == {2: 0, 3: 1, 4: 1, 5: 2, 6: 2}
    losses = {line["step"]: line["loss"] for line in lines(tmp_path)}
    assert losses.pop(3) is None and losses.pop(5) is None  # no step that counts; JSON has no NaN
    np.testing.assert_allclose(list(losses.values()), [(1 / BATCHES[:2]).mean(), 1 / BATCHES[3], 1 / BATCHES[5]], 1e-6)


def test_lines_have_the_means_of_the_steps_since_the_line_before(tmp_path):
    batches = BATCHES.copy()
    batches[4] = np.nan  # step 5 is skipped, and does not count
    run(tmp_path / "each", batches, steps=8, every=0, log_every=1, limit=1)
    run(tmp_path / "means", batches, steps=8, every=3, log_every=4, limit=1)
    each = {line["step"]: line for line in lines(tmp_path / "each")}
    last = 0
    for line in lines(tmp_path / "means"):
        # at each checkpoint, at each fourth step, at the skipped one
        steps = [step for step in range(last + 1, line["step"] + 1) if step != 5]
        last = line["step"]
        for name in ("loss", "grad_norm") if steps else ():
            np.testing.assert_allclose(line[name], np.mean([each[step][name] for step in steps]), rtol=1e-6)
        assert line["skipped"] == each[last]["skipped"] == (last >= 5)
        assert line["images_per_second"] > 0
    assert [line["step"] for line in lines(tmp_path / "means")] == [3, 4, 5, 6, 8]


def test_metric_means_of_random_metrics():
    rng, means = np.random.default_rng(0), MetricMeans()
    losses, skips = rng.normal(size=50).astype(np.float32), rng.random(50) < 0.3
    assert means.read() == {}
    for i in range(50):
        metrics = {"a/loss": np.nan if skips[i] else losses[i], "loss_deviation": losses[i], "a/learning_rate": 0.1 * i}
        means.add({name: jnp.float32(value) for name, value in metrics.items()} | {"consecutive_skips": int(skips[i])})
    values = means.read()
    np.testing.assert_allclose(values["a/loss"], losses[~skips].mean(dtype=np.float64), rtol=1e-5)
    assert values["loss_deviation"] == losses[~skips].max()  # a spike is not averaged away
    assert values["a/learning_rate"] == np.float32(4.9) and "consecutive_skips" not in values
    assert means.read() == {}


def test_metric_means_of_a_group_are_over_its_updates():
    means = MetricMeans()
    for i in range(5):
        updated = {"a/loss": 3.0 + i if i % 2 == 0 else 0.0, "a/is_updated": float(i % 2 == 0), "b/loss": float(i)}
        means.add({name: jnp.float32(value) for name, value in updated.items()} | {"consecutive_skips": int(i == 4)})
    assert means.read() == {"a/loss": 4.0, "b/loss": 1.5}
    means.add({"a/loss": jnp.float32(0), "a/is_updated": jnp.float32(0), "b/loss": jnp.float32(1)})
    np.testing.assert_equal(means.read(), {"a/loss": np.nan, "b/loss": 1.0})


def test_a_resumed_run_logs_the_lines_of_an_uninterrupted_one(tmp_path):
    """Resuming after a kill, from a checkpoint between two lines of log_every."""
    run(tmp_path, BATCHES, steps=9, every=3, log_every=4)
    whole = [{name: line[name] for name in ("step", "loss", "grad_norm")} for line in lines(tmp_path)]
    restored = restore(tmp_path, 3)
    run(tmp_path, BATCHES[3:], start=3, steps=9, every=3, log_every=4, state=restored)
    assert [{name: line[name] for name in ("step", "loss", "grad_norm")} for line in lines(tmp_path)] == whole


def test_held_out_metrics_are_logged_with_those_of_their_step(tmp_path):
    def evaluate(state):
        return {"eval/loss": float(state.variables["params"]["w"])}

    run(tmp_path, BATCHES, steps=7, log_every=2, every=0, eval_every=3, evaluate=evaluate)
    sums = {step: BATCHES[:step].sum() for step in (3, 6, 7)}
    assert {line["step"]: line.get("eval/loss") for line in lines(tmp_path)} == {2: None, 4: None, **sums}


def test_too_many_consecutive_skips_stop_the_run(tmp_path):
    batches = BATCHES.copy()
    batches[2:5] = np.nan
    with pytest.raises(loop.NotFinite, match=r"step 5: .* 2 steps before; .* is of step 4") as raised:
        run(tmp_path, batches, limit=2, every=1)
    assert raised.value.step == 3
    assert raised.value.state.variables["params"]["w"] == BATCHES[:2].sum()


def test_a_spike_is_logged(tmp_path):
    def step(state, batch):
        state, metrics = count(state, batch)
        return state, metrics | {"loss_deviation": jnp.where(state.step == 3, 7.0, 0.0)}

    run(tmp_path, BATCHES, step=step)
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, 4, 6]


def test_waiting_for_data_is_measured_and_reported(tmp_path, capsys):
    def slow():
        for batch in BATCHES:
            time.sleep(0.1)
            yield batch

    run(tmp_path, slow())
    assert max(line["data_wait"] for line in lines(tmp_path)) > 0.15
    assert "waits for data" in capsys.readouterr().out


@pytest.fixture
def released():
    """Yields an event that ends abandoned work when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def test_signal_abandons_a_preview(tmp_path, released):
    def preview(step, state):
        os.kill(os.getpid(), signal.SIGTERM)
        released.wait(60)

    before = time.monotonic()
    _, stopped = run(tmp_path, BATCHES, every=0, preview=preview)
    assert stopped == signal.SIGTERM
    assert saved(tmp_path) == [3]
    assert time.monotonic() - before < 30


def test_signal_abandons_the_compilation(tmp_path, released):
    def step(state, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        released.wait(60)

    _, stopped = run(tmp_path, BATCHES, step=step)
    assert stopped == signal.SIGTERM
    assert saved(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_saves_and_stops(tmp_path, number):
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


def test_signals_do_not_interrupt_a_save(tmp_path, monkeypatch):
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


def test_signal_during_the_last_save(tmp_path):
    def interrupt(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    _, stopped = run(tmp_path, BATCHES, on_saved=interrupt)
    assert stopped == signal.SIGTERM
    assert saved(tmp_path)[-1] == 6


DAMAGED = {
    "not UTF-8": b'{"step": 2, "loss": \xff}\n',
    "no step": b'{"step": null, "loss": 1.0}\n',
    "text in the place of a step": b'{"step": "2"}\n',
    "not an object": b"[1]\n",
    "a number": b"3\n",
    "deep": b"[" * 100_000 + b"\n",
    "blank": b"\n",
}


def test_damaged_lines_of_metrics_are_dropped_and_counted(tmp_path, capsys):
    good, later = b'{"step": 2, "loss": 0.25}\n', b'{"step": 4, "loss": "NaN"}\n'
    path = tmp_path / "metrics.jsonl"
    for name, damaged in DAMAGED.items():
        path.write_bytes(good + damaged + later + b'{"step": 6}\n' + b'{"step": 8, "lo')
        MetricsLog(tmp_path, 4).close()
        assert path.read_bytes() == good + later, name
        assert capsys.readouterr().err == f"{path}: 1 damaged line dropped, the first is line 2\n", name


def test_missing_metrics_file_is_reported(tmp_path, capsys):
    MetricsLog(tmp_path, 4).close()
    assert "metrics.jsonl: is missing; a new file starts at step 4" in capsys.readouterr().err


def test_resuming_drops_the_lines_of_repeated_steps(tmp_path):
    run(tmp_path, BATCHES)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "los')  # a kill in the middle of a line
    state, _ = run(tmp_path, BATCHES[4:], start=4, steps=8, state=restore(tmp_path, 4))
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8]
    assert state.variables["params"]["w"] == BATCHES[:8].sum()
