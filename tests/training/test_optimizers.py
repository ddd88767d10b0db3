"""Learning-rate schedules and optimisers against formulas and optax."""

import chex
import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.registry import choices
from diffjax.runs.checkpoints import Checkpoints
from diffjax.training import learning_rates, optimizers
from diffjax.training.compiled_step import compile_step, make_optimizers
from diffjax.training.optimization import averaged_params, learning_rate_schedule, make_optimizer
from diffjax.training.sharding import Devices
from diffjax.typing import Aux
from tests import tiny

RATE, B1, B2 = 0.01, 0.9, 0.99
SETTINGS = {
    "clip_norm": 1.0,
    "weight_decay": 0.1,
    "beta1": B1,
    "beta2": B2,
    "learning_rate_schedule": "constant",
}
RNG = np.random.default_rng(0)


def optimizer(name="adamw", rate=RATE, **settings):
    return make_optimizer(SETTINGS | {"optimizer": name} | settings, lambda count: rate * jnp.ones_like(count))


# Schedules


def schedule(name, warmup=10, total=110, peak=1.0):
    return learning_rate_schedule(name, peak, warmup_steps=warmup, total_steps=total)


VALUES = {  # values at steps 0, 5, 10, 60, 90, 109 and 110, after a warm-up of 10 of 110 steps
    "constant": [0, 0.5, 1, 1, 1, 1, 1],
    "cosine": [0, 0.5, 1, 0.5, (1 + np.cos(0.8 * np.pi)) / 2, (1 + np.cos(0.99 * np.pi)) / 2, 0],
    "cosine(end=0.2)": [0, 0.5, 1, 0.6, 0.2 + 0.4 * (1 + np.cos(0.8 * np.pi)), None, 0.2],
    "linear": [0, 0.5, 1, 0.5, 0.2, 0.01, 0],
    "linear(end=0.5)": [0, 0.5, 1, 0.75, 0.6, 0.505, 0.5],
    "inverse_sqrt(timescale=15)": [0, 0.5, 1, 60**-0.5 * 15**0.5, 90**-0.5 * 15**0.5, None, 110**-0.5 * 15**0.5],
    "warmup_stable_decay": [0, 0.5, 1, 1, 20 / 22, 1 / 22, 0],
    "warmup_stable_decay(decay=0.5, end=0.1)": [0, 0.5, 1, 0.1 + 0.9 * 50 / 55, 0.1 + 0.9 * 20 / 55, None, 0.1],
}


def test_the_values_of_each_schedule():
    assert {name.partition("(")[0] for name in VALUES} == choices(learning_rates).keys()
    for name, values in VALUES.items():
        rate = schedule(name)
        for step, value in zip((0, 5, 10, 60, 90, 109, 110), values, strict=True):
            if value is not None:
                np.testing.assert_allclose(rate(step), value, atol=1e-6, err_msg=f"{name} at {step}")


def test_a_schedule_without_warm_up():
    assert schedule("constant", warmup=0, total=10, peak=0.1)(0) == 0.1
    line = schedule("warmup_stable_decay(decay=1)", warmup=0, total=10)
    np.testing.assert_allclose(line(jnp.arange(11)), 1 - np.arange(11) / 10, atol=1e-6)


@pytest.mark.parametrize(
    ("decay", "warmup", "decay_steps"),
    [(0.07, 0, 7), (0.55, 0, 55), (0.071, 0, 8), (1e-6, 0, 1), (0.5, 20, 50), (0.9, 20, 80), (1, 20, 80)],
)
def test_the_steps_of_the_decay_are_its_share_of_all_steps(decay, warmup, decay_steps):
    """The share is rounded up to whole steps of 100, and the line does not begin within the warm-up."""
    rate = schedule(f"warmup_stable_decay(decay={decay})", warmup=warmup, total=100)
    steps = np.arange(warmup, 101)
    np.testing.assert_allclose(rate(steps), np.minimum((100 - steps) / decay_steps, 1), atol=1e-6)


def test_bad_schedules_and_optimizers():
    for name, message in {
        "cosin": "did you mean 'cosine'",
        "cosine(end=2)": "cosine: end=2: must be",
        "cosine(steps=3)": "takes no 'steps'",
        "warmup_stable_decay(decay=0)": "decay=0: must be",
        "inverse_sqrt(timescale=0)": "timescale=0: must be",
    }.items():
        with pytest.raises(UserError, match=message):
            schedule(name)
    for name, settings, message in [
        ("adam", {}, "did you mean 'adamw'"),
        ("lion(beta1=0.5)", {}, "takes no 'beta1'"),
        ("muon(momentum=1)", {}, "momentum=1: must be"),
        ("prodigy(initial=0)", {}, "initial=0: must be"),
        ("schedule_free", {"learning_rate_schedule": "cosine"}, "learning_rate_schedule=cosine; set it to constant"),
        ("schedule_free", {"ema_lengths": (0.05, 0.1)}, "ema_lengths to"),
        ("schedule_free", {"beta1": 0.0}, "beta1=0: must be"),
    ]:
        with pytest.raises(UserError, match=message):
            optimizer(name, **settings)


# Optimisers


def test_clipped_adam_with_decay_by_hand():
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) on a gradient clipped to norm 1."""
    adam = make_optimizer(SETTINGS, lambda step: 0.01)
    w = np.array([[1.0, -2.0]])
    state, m, v = adam.init(jnp.asarray(w)), 0.0, 0.0
    for step, gradient in enumerate(np.array([[[3.0, 4.0]], [[0.3, 0.4]], [[-6.0, 8.0]]]), start=1):
        updates, state = adam.update(jnp.asarray(gradient), state, jnp.asarray(w))
        clipped = gradient / max(1.0, np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * clipped, 0.99 * v + 0.01 * clipped**2
        expected = -0.01 * (m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8) + 0.1 * w)
        np.testing.assert_allclose(updates, expected, rtol=1e-4)
        w = w + expected


def test_the_state_has_the_structure_of_optax_adamw():
    """Checkpoints of both can then be read."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda step: 1e-3, weight_decay=0.1))
    assert jax.tree.structure(optimizer().init(params)) == jax.tree.structure(theirs.init(params))


OPTAX = {  # the same optimiser from optax, without a mask of the decay
    "adamw": optax.adamw(RATE, B1, B2, weight_decay=0.1),
    "adamw(bfloat16_moment=True)": optax.adamw(RATE, B1, B2, weight_decay=0.1, mu_dtype=jnp.bfloat16),
    "lion": optax.lion(RATE, B1, B2, weight_decay=0.1),
    "lion(bfloat16_moment=True)": optax.lion(RATE, B1, B2, weight_decay=0.1, mu_dtype=jnp.bfloat16),
    "adan": optax.adan(RATE, eps_root=0.0, weight_decay=0.1),
    "adafactor(momentum=0.9, min_size=4)": optax.adafactor(
        RATE, 4, multiply_by_parameter_scale=False, momentum=0.9, weight_decay_rate=None
    ),
    "adafactor(parameter_scale=True, min_size=4)": optax.adafactor(RATE, 4),
    "muon": optax.contrib.muon(RATE, weight_decay=0.1, consistent_rms=0.2),
    "muon(momentum=0.8, rms=0)": optax.contrib.muon(RATE, beta=0.8, weight_decay=0.1),
    "sgd": optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(RATE)),
    "sgd(momentum=0.5, nesterov=True)": optax.sgd(RATE, 0.5, nesterov=True),
    "prodigy": optax.contrib.prodigy(RATE, (B1, B2), safeguard_warmup=True),
    "schedule_free": optax.contrib.schedule_free_adamw(RATE, b1=B1, b2=B2, weight_decay=0.1),
}
WITHOUT_DECAY = [name for name in OPTAX if name.startswith(("adafactor", "prodigy", "sgd(m"))]
KERNELS = {name: {"kernel": RNG.normal(size=(6, size)).astype(np.float32)} for name, size in {"a": 4, "b": 8}.items()}


def test_each_optimizer_is_that_of_optax():
    """Three steps, without clipping, on kernels, all of which decay."""
    assert {name.partition("(")[0] for name in OPTAX} == choices(optimizers).keys()

    def steps(transformation):
        params, state = KERNELS, transformation.init(KERNELS)
        for _ in range(3):
            gradients = jax.tree.map(lambda w: jnp.sin(3 * w), params)
            updates, state = transformation.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params

    ours = {name: optimizer(name, clip_norm=0, weight_decay=0.0 if name in WITHOUT_DECAY else 0.1) for name in OPTAX}
    actual, expected = jax.jit(lambda: [{name: steps(of[name]) for name in OPTAX} for of in (ours, OPTAX)])()
    for name in OPTAX:
        chex.assert_trees_all_close(actual[name], expected[name], rtol=1e-5, atol=1e-6, custom_message=name)


def test_gains_biases_and_scalars_do_not_decay():
    """CLIP, section 2.5. The updates with and without decay differ by -rate * 0.1 * parameter, for other weights."""
    shapes = {"kernel": (2, 2), "token": (3, 2), "scale": (2, 2), "bias": (2,), "class": (2,), "log_scale": ()}
    params = {name: jnp.full(shape, 2.0) for name, shape in shapes.items()}
    gradients = {name: jnp.full(shape, 0.1) for name, shape in shapes.items()}

    def first_update(transformation):
        return transformation.update(gradients, transformation.init(params), params)[0]

    names = [*choices(optimizers)]
    updates = jax.jit(
        lambda: [{name: first_update(optimizer(name, weight_decay=decay)) for name in names} for decay in (0.1, 0.0)]
    )()
    for name in names:
        difference = jax.tree.map(lambda a, b: np.asarray(a - b), updates[0][name], updates[1][name])
        rate = RATE * {"prodigy": 1e-6}.get(name, 1.0)  # its first estimate
        for leaf in shapes:
            expected = -rate * 0.1 * 2.0 if leaf in ("kernel", "token") else 0.0
            np.testing.assert_allclose(difference[leaf], expected, rtol=1e-2, atol=1e-12, err_msg=f"{name}, {leaf}")


def test_muon_orthogonalises_kernels_only():
    """The singular values of an update of a kernel are nearly equal; Adam's first update has entries of one size."""
    kernel = RNG.normal(size=(3, 3, 2, 4)) * 10.0 ** RNG.uniform(-2, 0, size=(1, 1, 2, 4))
    gradients = {"kernel": jnp.asarray(kernel), "embedding": jnp.asarray(kernel[0, 0])}
    muon = optimizer("muon", rate=1.0, clip_norm=0, weight_decay=0.0)
    update, _ = jax.jit(muon.update)(gradients, muon.init(gradients), gradients)
    values = np.linalg.svd(np.reshape(update["kernel"], (18, 4)), compute_uv=False)
    size = 0.2 * 18**0.5
    assert 0.5 * size < values.min() and values.max() < 1.3 * size  # the iteration's own range
    np.testing.assert_allclose(np.abs(update["embedding"]), np.abs(update["embedding"]).max(), rtol=1e-4)


def test_kernels_of_fixed_norm():
    """EDM2's kernels: Muon updates them as other kernels, they do not decay, and averages of them are refused."""
    gradients = dict.fromkeys(("kernel", "unit_kernel"), jnp.asarray(RNG.normal(size=(3, 4))))

    def update(decay):
        muon = optimizer("muon", clip_norm=0, weight_decay=decay)
        return muon.update(gradients, muon.init(gradients), gradients)[0]

    plain, decayed = jax.jit(lambda: (update(0.0), update(0.1)))()
    np.testing.assert_allclose(plain["unit_kernel"], plain["kernel"], rtol=1e-5)
    np.testing.assert_allclose(decayed["unit_kernel"], plain["unit_kernel"], rtol=1e-5)
    assert not np.allclose(decayed["kernel"], plain["kernel"])
    with pytest.raises(UserError, match="does not keep the norm of an EDM2"):
        optimizer("schedule_free").init(gradients)


def test_prodigy_finds_the_scale_of_a_quadratic():
    """At the same relative learning rate of 1, for distances of four orders of magnitude."""
    prodigy = optimizer("prodigy", rate=1.0, clip_norm=0, weight_decay=0.0)

    @jax.jit
    def distance(scale):
        def step(carry, _):
            params, state = carry
            updates, state = prodigy.update(params - scale, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.zeros((4, 4))
        return jnp.abs(jax.lax.scan(step, (start, prodigy.init(start)), length=400)[0][0] - scale).max() / scale

    for scale in (0.01, 1.0, 100.0):
        assert distance(scale) < 0.05


# All optimisers in training, as groups of parameters of one model


X = RNG.normal(size=(4, 16, 8)).astype(np.float32)
WEIGHTS = {
    "first": {"kernel": RNG.normal(size=(8, 16)).astype(np.float32) / 4},
    "second": {"kernel": RNG.normal(size=(16, 4)).astype(np.float32) / 4, "bias": np.float32([0.1, -0.2, 0.3, 0])},
}
GROUPS = {name: name for name in choices(optimizers)} | {
    "adafactor": "adafactor(momentum=0.9, min_size=4)",
    "lion": "lion(bfloat16_moment=True)",
}
UPDATED_RARELY = ("schedule_free", "muon")


def loss_of(group):
    def loss(variables, batch, keys, context):
        first, second = (variables["params"][group][name] for name in ("first", "second"))
        outputs = jnp.tanh(batch["x"] @ first["kernel"]) @ second["kernel"] + second["bias"][None, :]
        return ((outputs - 1) ** 2).sum(-1), Aux({})

    return loss


def model():
    params = {group: WEIGHTS for group in GROUPS}
    losses = {group: loss_of(group) for group in GROUPS}
    return tiny.LossModel(init_function=lambda key: {"params": jax.tree.map(jnp.array, params)}, loss_functions=losses)


def config(**changes):
    c = tiny.config(train__warmup_steps=1, train__learning_rate_schedule="constant", **changes)
    c.unlock()
    c.train.max_consecutive_skips = 9
    for group, name in GROUPS.items():
        c.train[group] = {"optimizer": name, "learning_rate": 1.0 if name == "prodigy" else RATE, "weight_decay": 0.1}
        if group in UPDATED_RARELY:
            c.train[group].update_every = 2
    return c


def compiled(**devices):
    c, of = config(), Devices.create(**devices)
    step, state = compile_step(c, model(), make_optimizers(c, model()), of, examples=64)
    run = lambda state, x: step(state, of.put_batch({"x": x, "index": np.arange(16, dtype=np.int32)}), {})  # noqa: E731
    return run, state


def test_training_resumes_to_the_bit_with_each_optimizer(tmp_path):
    step, state = compiled(num_devices=1)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    start = jax.device_get(state.variables)
    for i, x in enumerate(X):
        if i == 2:
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(2, state)
        if i == 3:  # a step that is skipped changes no parameter, optimiser state or average
            before = jax.device_get((state.variables, state.optimizer, state.ema))
            state, _ = step(state, np.full_like(x, np.nan))
            chex.assert_trees_all_equal(jax.device_get((state.variables, state.optimizer, state.ema)), before)
        state, metrics = step(state, x)
        for group in UPDATED_RARELY:
            assert metrics[f"{group}/is_updated"] == (i % 2 == 0)
    for before, after in zip(*map(jax.tree.leaves, (start, state.variables)), strict=True):
        assert 0 < np.abs(before - after).max() < 1

    with Checkpoints(tmp_path) as checkpoints:
        resumed = checkpoints.restore(shapes)
    for x in (X[2], np.full_like(X[3], np.nan), X[3]):
        resumed, _ = step(resumed, x)
    chex.assert_trees_all_equal(jax.device_get(resumed), jax.device_get(state))

    average = averaged_params(state.optimizer["schedule_free"], state.variables["params"]["schedule_free"])
    chex.assert_trees_all_close(state.ema["schedule_free"], average, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_each_optimizer_has_the_same_updates_with_a_sharded_state():
    states = {}
    for fsdp in (1, 4):
        step, state = compiled(num_devices=fsdp, fsdp=fsdp)
        for x in X:
            state, _ = step(state, x)
        states[fsdp] = jax.device_get((state.variables, state.ema))
        for group in GROUPS:
            leaves = [leaf for leaf in jax.tree.leaves(state.optimizer[group]) if max(leaf.shape, default=0) >= 8]
            assert all(leaf.addressable_shards[0].data.size == leaf.size / fsdp for leaf in leaves), group
    chex.assert_trees_all_close(states[4], states[1], rtol=1e-4, atol=1e-5)


def test_the_average_of_schedule_free_is_the_mean_of_its_base_sequence():
    """Defazio et al. 2024, algorithm 1, at a constant learning rate; from the weights at the first update."""
    schedule_free = optimizer("schedule_free", clip_norm=0, weight_decay=0.0)
    state = schedule_free.init(jnp.zeros((2, 2)))
    params, sequence, update = jnp.full((2, 2), 3.0), [], jax.jit(schedule_free.update)
    for _ in range(4):
        updates, state = update(params - jnp.eye(2), state, params)
        params = optax.apply_updates(params, updates)
        sequence.append(state[1].z)
        np.testing.assert_allclose(averaged_params(state, params), np.mean(sequence, 0), rtol=1e-5)
    assert sequence[0].min() > 2.9 and sequence[0].max() < 3
    assert averaged_params(optimizer("adamw").init(params), params) is None


def test_frozen_weights_have_no_state_in_any_optimizer():
    c = config(train__freeze=("first",))
    of = make_optimizers(c, model())

    def init_and_update(params):
        states = {group: of[group].init(params) for group in GROUPS}
        updated = {group: of[group].update(params, states[group], params) for group in GROUPS}
        average = averaged_params(states["schedule_free"], params)
        return states, {group: updates for group, (updates, _) in updated.items()}, average

    states, updates, average = jax.eval_shape(init_and_update, jax.tree.map(jnp.asarray, WEIGHTS))
    assert {leaf.shape for leaf in jax.tree.leaves(states)} <= {(), (1,), (3,), (4,), (16,), (16, 4)}
    for tree in (*updates.values(), average):
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, WEIGHTS)
