"""The diffusion process of a config, and sampling settings."""

import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.inference.overrides import SETTINGS
from diffjax.models.diffusion.diffusion_settings import make_diffusion_settings
from diffjax.models.diffusion.process import Process
from tests import tiny


def process(**changes) -> Process:
    return Process.from_config(tiny.config(**changes).diffusion)


def losses(process: Process, network, x0, keys, params=None):
    """Returns losses [B], and the network's time inputs [B] in training."""
    bound = process.bind(process.init() if params is None else params)
    times = []

    def recording_network(x, t):
        times.append(t)
        return network(x, t)

    return bound.train_loss(recording_network, x0, keys, bound.times.init(bound.schedule))[0], times[0]


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.slow
def test_the_loss_is_that_of_ddpm():
    """Algorithm 1 of Ho et al. 2020 in NumPy: a network that is off by a constant has its square as loss."""
    ddpm = process(diffusion__schedule="linear", diffusion__parameterization="eps", diffusion__timesteps=1000)
    x0 = np.random.default_rng(0).uniform(-1, 1, (64, 4, 4, 1)).astype(np.float32)
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alphas, sigmas = (jnp.asarray(f, jnp.float32) for f in (np.sqrt(bar), np.sqrt(1 - bar)))

    def network(x, t):
        alpha, sigma = (table[jnp.int32(t)][:, None, None, None] for table in (alphas, sigmas))
        return (x - alpha * x0) / sigma + 0.3

    loss, times = jax.jit(lambda keys: losses(ddpm, network, x0, keys))(keys(64))
    np.testing.assert_allclose(loss, 0.09 * np.ones(64), atol=2e-3)
    np.testing.assert_array_equal(times, np.round(times))
    assert times.min() >= 0
    assert times.max() <= 999
    assert len(np.unique(times)) > 40


def test_a_learned_weighting_is_that_of_edm2():
    """Eq. 21 of Karras et al. 2024: loss / e^u + u, with u = -log 2 at all levels."""
    simple, learned = (process(diffusion__weighting=name) for name in ("simple", "learned"))
    params = learned.init()
    params["weighting"]["bias"] = jnp.log(2.0)

    def loss(process, keys, params):
        return losses(process, lambda x, t: 0.5 * x, jnp.zeros((8, 4, 4, 1)), keys, params)[0]

    run = jax.jit(lambda keys: [loss(simple, keys, {}), loss(learned, keys, None), loss(learned, keys, params)])
    expected, initial, doubled = run(keys(8))
    np.testing.assert_allclose(initial, expected, rtol=1e-6)
    np.testing.assert_allclose(doubled, 2 * expected - np.log(2), rtol=1e-5)


def test_the_exact_network_has_loss_zero():
    """For x_0 = 0 every target is known from x_t alone, so the loss of the right network is zero."""
    axes = list(itertools.product(("eps", "x0", "v"), (False, True)))
    processes = [
        process(diffusion__parameterization=name, diffusion__continuous=continuous, diffusion__timesteps=100)
        for name, continuous in axes
    ]

    def losses_of(process, keys, error):
        def network(x, t):
            c = process.coefficients(process.schedule(t + 1))
            return error - x * jax.vmap(lambda c: c.skip / c.out)(c)[:, None]

        return losses(process, network, jnp.zeros((50, 3)), keys)[0]

    run = jax.jit(lambda keys, error: [losses_of(process, keys, error) for process in processes])
    for axis, exact, worse in zip(axes, run(keys(50, 1), 0.0), run(keys(50, 1), 0.5), strict=True):
        np.testing.assert_allclose(exact, np.zeros(50), atol=1e-6, err_msg=str(axis))
        np.testing.assert_allclose(worse, 0.25 * np.ones(50), rtol=1e-4, err_msg=str(axis))


def test_timesteps_are_uniform():
    four = process(diffusion__timesteps=4)
    run = jax.jit(lambda keys: losses(four, lambda x, t: x, jnp.zeros((4000, 1)), keys))
    counts = np.bincount(np.asarray(run(keys(4000))[1]).astype(int), minlength=4)
    np.testing.assert_allclose(counts, 1000 * np.ones(4), atol=5 * np.sqrt(4000 * 0.25 * 0.75))


def test_a_learned_variance_doubles_the_channels_and_has_a_gradient():
    """The variance is learned from the variational bound."""
    learned = process(diffusion__variance="learned_range", diffusion__loss="hybrid")

    def loss(spread):
        network = lambda x, t: jnp.concatenate([0.1 * x, jnp.full_like(x, spread)], axis=-1)  # noqa: E731
        return losses(learned, network, jnp.zeros((6, 2, 2, 1)), keys(6))[0].mean()

    assert jax.jit(jax.grad(loss))(0.3) != 0


@pytest.mark.slow
def test_a_learned_schedule_depends_on_its_parameters():
    learned = process(diffusion__schedule="learned", diffusion__loss="vlb")

    @jax.jit
    def run():
        params = learned.init()
        changed = {"schedule": {**params["schedule"], "ends": jnp.array([-10.0, 2.0])}}
        loss = lambda p: losses(learned, lambda x, t: 0.1 * x, jnp.zeros((6, 2, 2, 1)), keys(6), p)[0].mean()  # noqa: E731
        return learned.bind(changed).schedule(20.0).alpha, jax.grad(loss)(params)

    last_alpha, gradients = run()
    np.testing.assert_allclose(last_alpha**2, 1 / (1 + np.exp(2.0)), rtol=1e-5)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
    assert process().init() == {}


@pytest.mark.parametrize(("timesteps", "rescale", "most"), [(4000, True, 999.75), (4000, False, 3999), (20, True, 950)])
def test_the_time_input_is_rescaled_as_in_improved_ddpm(timesteps, rescale, most):
    """`_scale_timesteps` of its code: (t - 1) * 1000 / T, in training as in sampling."""
    rescaled = process(diffusion__timesteps=timesteps, diffusion__rescale_timesteps=rescale)

    @jax.jit
    def run(keys):
        times = []
        denoise = rescaled.denoiser(lambda x, time: times.append(time) or x)
        for t in (1, 2, timesteps):
            denoise(jnp.zeros((2, 3)), rescaled.schedule(float(t)))
        return times, losses(rescaled, lambda x, time: 0.1 * x, jnp.zeros((500, 1)), keys)[1]

    in_sampling, in_training = run(keys(500))
    factor = 1000 / timesteps if rescale else 1
    np.testing.assert_allclose(np.stack(in_sampling)[:, 0], factor * np.array([0, 1, timesteps - 1]), rtol=1e-6)
    assert in_sampling[-1][0] == pytest.approx(most)
    np.testing.assert_allclose(in_training / factor, np.round(in_training / factor), atol=1e-3)
    assert 0.9 * most < in_training.max() <= most


def test_the_time_input_is_not_rescaled_by_default():
    config = tiny.config().diffusion.copy_and_resolve_references().unlock()
    del config.rescale_timesteps  # as in older configs
    assert Process.from_config(config).time_scale == 1.0


def settings_of(noising, config=None, guided=("label",), **settings):
    return make_diffusion_settings(noising, config or tiny.config().sampler, guided=guided, **settings)


def test_settings_of_one_sampler_share_their_structure():
    noising = process()
    one = settings_of(noising, capacity=20, steps=3, eta=0.0)
    other = settings_of(
        noising, capacity=20, steps=20, eta=1.0, guidance=3.0, grid="quadratic", strength=0.5, resample_steps=3
    )
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [x.shape for x in jax.tree.leaves(one)] == [x.shape for x in jax.tree.leaves(other)]


def test_an_option_in_the_name_equals_a_separate_option():
    noising = process()
    one, other = settings_of(noising, name="ddim(eta=0.5)"), settings_of(noising, name="ddim", eta=0.5)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert one.sampler_options["eta"] == other.sampler_options["eta"] == 0.5
    assert settings_of(noising, name="ddim(eta=0.5)", eta=1.0).sampler_options["eta"] == 1.0


def test_grids_may_set_the_number_of_steps():
    assert settings_of(process(), grid="sections(3, 2)", steps=4).num_steps == 5
    assert settings_of(process(), grid="sections", steps=4).num_steps == 4
    np.testing.assert_array_equal(settings_of(process(), grid="times(20, 7, 1)").times, [20, 7, 1, 0])


def test_strength_sets_the_first_step_of_image_to_image():
    noising = process()  # 20 timesteps
    assert settings_of(noising, steps=20, strength=1.0)["begin"] == 0
    assert settings_of(noising, steps=20, strength=0.5)["begin"] == 10
    assert settings_of(noising, steps=4, strength=0.01)["begin"] == 3  # at least one step is taken
    hundred = process(diffusion__timesteps=100)
    assert settings_of(hundred, steps=100, strength=0.29)["begin"] == 71  # 0.29 x 100 is below 29 by rounding


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, "unknown diffusion.schedule 'cosin': did you mean 'cosine'"),
        ({"parameterization": "epsilon"}, "unknown diffusion.parameterization 'epsilon': did you mean 'eps'"),
        ({"weighting": "simpel"}, "did you mean 'simple'"),
        ({"variance": "fixedsmall"}, "did you mean 'fixed_small'"),
        ({"time_sampling": "uniforn"}, "did you mean 'uniform'"),
        ({"loss": "mes"}, "did you mean 'mse'"),
        ({"timesteps": 0}, "diffusion.timesteps=0: must be a whole number from 1"),
        ({"schedule": "cosine(beta_max=0.1)"}, "diffusion.schedule 'cosine' takes no 'beta_max'; it takes offset"),
        ({"weighting": "min_snr(5)"}, "min_snr.option=number"),
        ({"schedule": "rectified_flow", "parameterization": "eps"}, "where no signal is left"),
        ({"zero_terminal_snr": True, "parameterization": "eps"}, "choose v, x0, flow, edm or consistency"),
        ({"zero_terminal_snr": True, "timesteps": 1}, "at least two levels"),
        ({"zero_terminal_snr": True, "schedule": "learned", "loss": "vlb"}, "learned schedule"),
        ({"schedule": "learned"}, "set diffusion.loss=vlb"),
        ({"variance": "learned_range"}, "set diffusion.loss=hybrid or vlb"),
        ({"variance": "learned_range", "loss": "vlb", "continuous": True}, "continuous=False"),
        ({"parameterization": "mu", "continuous": True}, "requires discrete timesteps"),
        ({"time_sampling": "importance", "continuous": True}, "discrete schedule"),
        ({"rescale_timesteps": True, "parameterization": "edm"}, "rescale_timesteps=True: parameterization=edm gives"),
        ({"parameterization": "consistency"}, "weighting=simple: has no bounds near sigma_min"),
        ({"parameterization": "consistency(sigma_min=0)", "weighting": "edm"}, "consistency, sigma_min=0"),
        ({"weighting": "learned", "loss": "vlb"}, "weighting=learned: is not supported for loss=vlb"),
        ({"weighting": "snr", "loss": "vlb"}, "weighting=snr: has no effect on loss=vlb, .*; set it to simple$"),
        ({"time_sampling": "log_normal", "loss": "vlb"}, "only with time_sampling=uniform or importance"),
    ],
)
def test_invalid_choices_raise(changes, message):
    with pytest.raises(UserError, match=message):
        process(**{f"diffusion__{name}": value for name, value in changes.items()})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 0}, "sampler.steps=0: must be a whole number from 1"),
        ({"steps": 21}, "20 timesteps has 1 to 20 steps, not 21"),
        ({"name": "dim"}, "did you mean 'ddim'"),
        ({"grid": "trialing"}, "did you mean 'trailing'"),
        ({"grid": "karras(rho=-1)"}, "rho > 0"),
        ({"grid": "sections(30)"}, "20 timesteps has 20, not 30"),
        ({"grid": "times(21)"}, "from 1 to 20"),
        ({"threshold": "clipp"}, "did you mean 'clip'"),
        ({"name": "ancestral", "eta": 1.0}, "sampler 'ancestral' takes no 'eta'"),
        ({"name": "euler_ancestral", "eta": 1.0, "sigma_hat": True}, "takes no 'sigma_hat'"),  # --eta=hat
        ({"name": "edm(schedule=1)"}, "takes no 'schedule'"),
        ({"name": "unipc(order=4)"}, "sampler.name=unipc, order=4: must be a whole number from 1 to 3"),
        ({"name": "dpm_solver(order=1.5)"}, "order=1.5: must be a whole number"),
        ({"temperature": -1.0}, "sampler.temperature=-1"),
        ({"grid": "log_snr(rho=0)"}, "rho > 0"),
        ({"grid": "times(2.5)"}, "set fractional=True"),
        ({"guidance": 2.0}, "leave it at 1"),
        ({"strength": 0.0}, "above 0"),
        ({"resample_steps": 0}, "sampler.resample_steps=0: must be a whole number from 1"),
    ],
)
def test_invalid_settings_raise(overrides, message):
    with pytest.raises(UserError, match=message):
        settings_of(process(), tiny.config(sampler__guidance=1.0).sampler, guided=(), **overrides)


@pytest.mark.parametrize("name", ["ddim(sigma_hat=True)", "euler_ancestral", "dpmpp_2m_sde", "dpm_adaptive"])
def test_the_noise_of_any_sampler_is_set_by_its_flag(name):
    overrides = {"name": name, **SETTINGS["eta"].parse("0.5")}
    settings = settings_of(process(), tiny.config(sampler__guidance=1.0).sampler, guided=(), **overrides)
    assert settings.sampler_options["eta"] == 0.5 and not settings.sampler_options.get("sigma_hat")
