"""The held-out loss: equal to the losses of the same batches by hand, on any devices; training is as without it."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from PIL import Image

import diffjax
from diffjax import data, models
from diffjax.training.compiled_step import compile_step, make_optimizers
from diffjax.training.held_out import has_losses, held_out_key, make_evaluate, open_held_out
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec, StepContext
from tests import tiny
from tests.command_line import launch
from tests.running import state_arrays, steps

SPEC = ImageSpec(8, 1, 10)


@pytest.fixture(scope="module")
def runs(trained_runs, tmp_path_factory):
    """Two runs of four steps, without and with held-out losses at steps 3 and 4."""
    config, run = trained_runs.config("pixel"), tmp_path_factory.mktemp("held_out") / "run"
    flags = ["--config.train.eval_every=3", "--config.train.eval_batches=2", "--logger=none"]
    assert launch("train", f"--config={config}", f"--workdir={run}", *flags) == 0
    return {"without": trained_runs("pixel"), "with": run}


def test_held_out_losses_do_not_change_training(runs):
    assert state_arrays(runs["without"], 4) == state_arrays(runs["with"], 4)
    without, with_losses = ([line.copy() for line in steps(runs[name])] for name in ("without", "with"))
    held_out = {line["step"]: line.pop("eval/loss", None) for line in with_losses}
    assert [step for step, value in held_out.items() if value is not None] == [3, 4]
    assert without == with_losses


@pytest.mark.slow
def test_the_held_out_loss_by_hand(runs):
    """Two batches of 16 test images, with the averaged parameters of the last step."""
    run = diffjax.load(runs["with"])
    batches = data.Batches(
        data.open_dataset("digits", directory="", split="test", image_size=8), batch_size=16, seed=run.config.seed
    )
    same = lambda tree: tree  # noqa: E731
    values = []
    for number in range(2):
        batch = batches.batch(number)
        key = jax.random.fold_in(held_out_key(run.config), number)
        keys = jnp.stack([jax.random.fold_in(key, i) for i in range(16)])
        context = StepContext(jnp.int32(4), key, 16, jnp.bool_(True), same, same)
        values.append(np.asarray(run.system.loss({**run.variables, "frozen": {}}, batch, keys, context)[0]))
    np.testing.assert_allclose(steps(runs["with"])[-1]["eval/loss"], np.mean(values), rtol=1e-5)


@functools.cache
def evaluated(base, num=40, **parallel):
    """Returns the held-out losses of a fresh model on `num` random images."""
    config = tiny.config(base, train__eval_batches=2, **({"model": tiny.DIT} if base == "digits" else {}))
    model, devices = models.build(config, SPEC), Devices.create(**parallel)
    _, state = compile_step(config, model, make_optimizers(config, model), devices, examples=48)
    examples = tiny.batch(num)
    source = [{"image": examples["image"][i], "label": examples["label"][i]} for i in range(num)]
    evaluate = make_evaluate(config, model, source, ("image", "label"), devices, devices.replicate(model.frozen))
    first, second = evaluate(state), evaluate(state)
    assert first == second  # the same batches and keys
    return first


LAYOUTS = {"pmap": {"mode": "pmap"}, "jit": {}, "fsdp": {"fsdp": 4}}


@pytest.mark.parametrize("layout", [pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS])
def test_layouts_have_the_same_held_out_losses(layout):
    expected = evaluated("digits", num_devices=1)
    assert expected.keys() == {"eval/loss"}
    np.testing.assert_allclose(evaluated("digits", **LAYOUTS[layout])["eval/loss"], expected["eval/loss"], rtol=1e-5)


@pytest.mark.slow
def test_held_out_losses_of_a_gan_on_two_devices():
    """Both groups have one, with the discriminator's mean logits of real and generated images."""
    names = {"generator/loss", "discriminator/loss", "discriminator/real", "discriminator/fake"}
    one, two = evaluated("gan", num_devices=1), evaluated("gan", num_devices=2, mode="pmap")
    assert one.keys() == {f"eval/{name}" for name in names}
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-6)


def test_a_held_out_split_smaller_than_a_batch():
    assert np.isfinite(evaluated("gan", num=5, num_devices=1)["eval/generator/loss"])


def test_held_out_examples_are_the_test_split_or_the_rest_of_a_slice(tmp_path, capsys):
    for i in range(20):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i:02}.png")
    folder = {"data__name": "folder", "data__dir": str(tmp_path), "train__eval_every": 5}
    part, rest = (
        {int(source[i]["image"].max()) for i in range(len(source))}
        for source in (
            data.open_dataset("folder", split="train[:90%]", image_size=8, directory=str(tmp_path)),
            open_held_out(tiny.config(**folder, data__split="train[:90%]")),
        )
    )
    assert len(part) == 18 and len(rest) == 2 and part | rest == set(range(20))
    assert open_held_out(tiny.config(**folder)) is None
    assert "no held-out loss: data.name=folder" in capsys.readouterr().out
    assert len(open_held_out(tiny.config(train__eval_every=5))) == len(
        data.open_dataset("digits", directory="", split="test", image_size=8)
    )
    assert open_held_out(tiny.config()) is None and capsys.readouterr().out == ""


def test_principal_components_have_no_held_out_loss():
    model = tiny.LossModel(init_function=lambda key: {"params": {"model": {}}, "statistics": {"mean": jnp.zeros(3)}})
    assert not has_losses(model)
    assert has_losses(models.build(tiny.config("gan"), SPEC))
