"""Training on one or several devices, by jit or pmap, has the same metrics."""

import functools

import chex
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.errors import UserError
from diffjax.models.base import TrainedStage
from diffjax.models.lora import adapt
from diffjax.models.parameter_paths import flatten
from diffjax.training.compiled_step import compile_step, fit_to_first_batch, lower_step, make_optimizers
from diffjax.training.sharding import Devices
from diffjax.training.start import StartWeights
from diffjax.typing import Aux, ImageSpec
from tests import conditioned, tiny

STEPS = 5
SPEC = ImageSpec(8, 1, 10)
LAYOUTS = {
    "jit on 8": {"mode": "jit", "num_devices": 8},
    "pmap on 8": {"mode": "pmap", "num_devices": 8},
    "fsdp 4 x 2": {"mode": "jit", "num_devices": 8, "fsdp": 2},
    "tensor 2 x 2 x 2": {"mode": "jit", "num_devices": 8, "fsdp": 2, "tensor": 2},
    "pmap on 2, 2 parts": {"mode": "pmap", "num_devices": 2, "accumulate": 2},
}
DIFFUSION = {"model": conditioned.DIT | {"width": 16, "dropout": 0.2}, "data__augment": {"prob": 0.3}}
IN_GROUPS = {
    "diffusion__schedule": "rectified_flow",
    "diffusion__continuous": True,
    "diffusion__parameterization": "flow",
    "diffusion__loss": "inductive_moment_matching(group=2)",
    "diffusion__next_times": "uniform_below",
}
MEAN_FLOW = {**IN_GROUPS, "diffusion__loss": "mean_flow", "diffusion__next_times": "second_sample(share=0.5)"}
MEAN_FLOW["diffusion__parameterization"] = "flow(time_scale=0.05)"
CODEBOOKS = {
    "codebook with restarts": {"codebook__decay": 0.5, "codebook__dead_code_threshold": 0.6},
    "discriminator": {
        "adversarial": tiny.config("vqgan", adversarial__start_step=2).adversarial.to_dict(),
        "codebook__update_rule": "gradient",
        "codebook__dead_code_threshold": 0.6,
        "codebook__decay": 0.5,
    },
}


def prior_with_codec(base):
    """Returns the config of a prior, and its part: an untrained autoencoder."""
    codec = models.build(tiny.config("vqvae"), SPEC)
    return tiny.config(base), {"codec": (codec, {**tiny.randomised(codec.init), "frozen": {}})}


def two_groups():
    """Returns the config of a GAN whose generator is updated in each second step."""
    config = tiny.config("gan")
    config.train.generator.update_every = 2
    return config, {}


def student_of_two_steps():
    """Returns the config of distribution matching, and its part: an untrained teacher."""
    network = {
        "model": DIFFUSION["model"],
        "diffusion__schedule": "rectified_flow",
        "diffusion__parameterization": "flow",
    }
    teacher = TrainedStage(*conditioned.with_random_params(models.build(tiny.config(**network), SPEC)))
    loss = {"diffusion__loss": "distribution_matching(generator_steps=2)", "teacher": "RUN"}
    return tiny.config(**network, **loss), {"teacher": teacher}


KINDS = {  # config, and the parts that it depends on
    "diffusion": lambda: (tiny.config(**DIFFUSION), {}),  # with dropout and augmentation
    "groups of examples": lambda: (tiny.config(**DIFFUSION | IN_GROUPS), {}),
    "mean flow": lambda: (tiny.config(**DIFFUSION | MEAN_FLOW), {}),
    "distribution matching": student_of_two_steps,
    "two groups": two_groups,
    "clip": lambda: (tiny.config("clip_shapes"), {}),
    "autoregressive": lambda: prior_with_codec("prior_transformer"),
    "masked": lambda: prior_with_codec("masked_digits"),
} | {name: lambda changes=changes: (tiny.config("vqvae", **changes), {}) for name, changes in CODEBOOKS.items()}


@functools.cache
def trained(kind, mode="jit", num_devices=1, fsdp=1, tensor=1, accumulate=1, dtype="float32"):
    """Returns the metrics of each step, and the variables after the last one."""
    config, parts = KINDS[kind]()
    config = config.copy_and_resolve_references().unlock()
    config.train.accumulate, config.dtype = accumulate, dtype
    model = models.build(config, SPEC, **parts)
    devices = Devices.create(mode=mode, num_devices=num_devices, fsdp=fsdp, tensor=tensor)
    step, state = compile_step(config, model, make_optimizers(config, model), devices, examples=48)
    state = fit_to_first_batch(model, state, tiny.batch(16))
    frozen, history = devices.replicate(model.frozen), []
    for seed in range(STEPS):
        state, metrics = step(state, devices.put_batch(tiny.batch(16, seed)), frozen)
        history.append({name: float(value) for name, value in metrics.items()})
    if fsdp > 1:
        leaves = jax.tree.leaves(state)
        sharded = [leaf for leaf in leaves if leaf.addressable_shards[0].data.size < leaf.size]
        assert sum(leaf.size for leaf in sharded) > 0.9 * sum(leaf.size for leaf in leaves)
    assert (tensor > 1) == any("tensor" in (leaf.sharding.spec or ()) for leaf in jax.tree.leaves(state.variables))
    return history, jax.device_get(state.variables)


def check_same_metrics(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            rtol = 1e-5 if name.endswith("loss") else 1e-3
            np.testing.assert_allclose(one[name], value, rtol=rtol, atol=1e-5, err_msg=name)


def slow_except(default, cases):
    return [pytest.param(*case, marks=[] if case == default else [pytest.mark.slow]) for case in cases]


CASES = [
    *(("diffusion", layout) for layout in LAYOUTS),
    *(("groups of examples", layout) for layout in ("jit on 8", "pmap on 2, 2 parts")),
    *(("codebook with restarts", layout) for layout in ("jit on 8", "pmap on 8", "pmap on 2, 2 parts")),
    ("discriminator", "pmap on 8"),
    *(("two groups", layout) for layout in ("fsdp 4 x 2", "pmap on 2, 2 parts")),
    ("clip", "pmap on 8"),
    *(("autoregressive", layout) for layout in ("fsdp 4 x 2", "tensor 2 x 2 x 2")),
    ("masked", "pmap on 2, 2 parts"),
]


@pytest.mark.parametrize(("kind", "layout"), slow_except(("diffusion", "fsdp 4 x 2"), CASES))
def test_layouts_have_the_same_metrics(kind, layout):
    (actual, variables), (expected, expected_variables) = trained(kind, **LAYOUTS[layout]), trained(kind)
    check_same_metrics(actual, expected)
    if kind in CODEBOOKS:  # statistics of the whole batch: running means, restarts, usage, gradient ratio
        prefix = "model/" if kind == "discriminator" else ""
        assert {"loss", "codes_used", "perplexity", "commitment"} <= {key.removeprefix(prefix) for key in expected[0]}
        assert sum(metrics[f"{prefix}restarts"] for metrics in expected) > 0
        assert kind != "discriminator" or expected[-1]["model/adversarial_weight"] > 0
        for name in ("codebook", "latents"):
            chex.assert_trees_all_close(variables[name], expected_variables[name], rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(variables["params"], expected_variables["params"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mean flow", "groups of examples", "distribution matching"])
def test_losses_of_few_steps_on_two_devices_in_two_parts_and_in_bfloat16(kind):
    """In bfloat16 the first losses are compared, as later ones depend on what rounding did to the parameters.

    The very first may be equal: the output of a new network is zero.
    """
    history, variables = trained(kind)
    same, same_variables = trained(kind, **LAYOUTS["pmap on 2, 2 parts"])
    check_same_metrics(same, history)
    chex.assert_trees_all_close(same_variables["params"], variables["params"], atol=1e-4)  # of steps of 1e-3
    half, _ = trained(kind, dtype="bfloat16")
    for name in (name for name in history[0] if name.endswith("loss")):
        expected, found = ([metrics[name] for metrics in each[:3]] for each in (history, half))
        assert found != expected
        np.testing.assert_allclose(found, expected, rtol=0.05, err_msg=name)


@pytest.mark.slow
def test_device_memory_of_a_sharded_state():
    """Parameters, optimiser and average over four devices: a quarter each, by the compiled program's own count."""
    config = tiny.config("vae", model__residual_channels=32)
    model = models.build(config, SPEC)
    shapes = jax.eval_shape(lambda: tiny.batch(16))
    memory = {}
    for fsdp in (1, 4):
        devices = Devices.create(num_devices=4, fsdp=fsdp)
        memory[fsdp] = lower_step(config, model, devices, shapes, 64).compile().memory_analysis()
    params = model.variable_shapes["params"]
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)) / 4
    state = 4 * 4 * sum(leaf.size for leaf in jax.tree.leaves(params))  # parameters, two moments, average
    assert memory[1].argument_size_in_bytes == pytest.approx(state + batch, rel=0.01)
    assert memory[4].argument_size_in_bytes == pytest.approx(state / 4 + batch, rel=0.1)  # some leaves are replicated
    assert memory[4].output_size_in_bytes == pytest.approx(memory[1].output_size_in_bytes / 4, rel=0.1)


@pytest.mark.slow
def test_initial_state_does_not_depend_on_the_sharding():
    states = []
    for options in ({"num_devices": 1}, {"num_devices": 8, "fsdp": 4}):
        config = tiny.config(**{f"parallel__{name}": value for name, value in options.items()})
        model, devices = models.build(config, SPEC), Devices.create(**config.parallel)
        _, state = compile_step(config, model, make_optimizers(config, model), devices, examples=64)
        states.append(jax.device_get(state.variables))
    chex.assert_trees_all_equal(*states)


RNG = np.random.default_rng(0)
FIRST, SECOND = (RNG.normal(size=shape).astype(np.float32) / 4 for shape in ((8, 16), (16, 4)))
WEIGHTS = {"model": {"first": {"kernel": FIRST}, "second": {"kernel": SECOND, "bias": np.float32([0.1, -0.2, 0.3, 0])}}}
FIELDS = {
    "lora": {"train__lora": {"rank": 4, "alpha": 8.0, "targets": ("*",)}},
    "freeze": {"train__freeze": ("first",)},
}


def two_layers(variables, batch, keys, context):
    first, second = (variables["params"]["model"][name] for name in ("first", "second"))
    outputs = jnp.tanh(batch["x"] @ first["kernel"]) @ second["kernel"] + second["bias"][None, :]
    return (outputs**2).sum(-1), Aux({})


@functools.cache
def started(kind, mode="jit", num_devices=1, fsdp=1):
    """Returns the metrics of each step and the last state of a LoRA, or of frozen weights, of given first weights."""
    config = tiny.config(train__ema_lengths=(0.05, 0.1), train__weight_decay=0.1, **FIELDS[kind])
    zeros = jax.tree.map(np.zeros_like, WEIGHTS)
    model = tiny.LossModel(init_function=lambda key: {"params": zeros}, loss_functions={"model": two_layers})
    named = flatten(WEIGHTS)
    start = StartWeights({f"params/{name}": leaf for name, leaf in named.items()}, named, None, "")
    if kind == "lora":
        model, start = adapt(config, model, start.averaged_params), start.without_params
    devices = Devices.create(mode=mode, num_devices=num_devices, fsdp=fsdp)
    step, state = compile_step(config, model, make_optimizers(config, model), devices, examples=48)
    state, frozen, history = start.apply(state), devices.replicate(model.frozen), []
    for seed in range(STEPS):
        x = np.random.default_rng(seed).normal(size=(16, 8)).astype(np.float32)
        state, metrics = step(state, devices.put_batch({"x": x, "index": np.arange(16, dtype=np.int32)}), frozen)
        history.append({name: float(value) for name, value in metrics.items()})
    return history, jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"mode": "pmap", "num_devices": 4}, {"num_devices": 4, "fsdp": 2}])
@pytest.mark.parametrize("kind", FIELDS)
def test_layouts_have_the_same_starting_weights_updates_and_averages(kind, layout):
    (actual, state), (expected, expected_state) = started(kind, **layout), started(kind)
    check_same_metrics(actual, expected)
    for name in ("variables", "ema", "power_ema"):
        chex.assert_trees_all_close(getattr(state, name), getattr(expected_state, name), rtol=1e-5, atol=1e-6)
    assert expected[-1]["loss"] < expected[0]["loss"]
    if kind == "freeze":
        np.testing.assert_array_equal(state.variables["params"]["model"]["first"]["kernel"], FIRST)


def test_invalid_layouts_raise():
    cases = {
        "did you mean 'pmap'": {"mode": "pnap"},
        "this machine has 8": {"num_devices": 9},
        "must divide the number of devices, 8": {"num_devices": 8, "fsdp": 3},
        "parallel.mode='jit'": {"mode": "pmap", "fsdp": 2},
        "the number of devices, 8 divided by parallel.fsdp=4": {"num_devices": 8, "fsdp": 4, "tensor": 4},
        "parallel.tensor=2: requires parallel.mode='jit'": {"mode": "pmap", "tensor": 2},
    }
    for message, options in cases.items():
        with pytest.raises(UserError, match=message):
            Devices.create(**options)
    for size, accumulate in ((12, 1), (8, 2), (16, 0)):
        with pytest.raises(UserError, match="make it a multiple of"):
            Devices.create(num_devices=8).check_batch(size, accumulate)
    Devices.create(num_devices=8, tensor=4).check_batch(2, 1)
    with pytest.raises(UserError, match=r"over 8 / parallel.tensor=4 devices .* make it a multiple of 2"):
        Devices.create(num_devices=8, tensor=4).check_batch(3, 1)
    with pytest.raises(UserError, match=r"in groups of 4 \(diffusion.loss\); make it a multiple of 64"):
        Devices.create(num_devices=8).check_batch(32, 2, 4)
