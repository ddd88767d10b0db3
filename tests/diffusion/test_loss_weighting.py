"""Each weighting against its paper's loss, which weighs the error of eps, v, x_0 or the network's own output."""

import numpy as np
import pytest

from diffjax.diffusion import loss_weighting, noise_schedules, parameterizations
from diffjax.registry import choices

# (weighting, options, parameterization, what the paper's loss is of, its weight there).
PAPERS = [
    ("simple", {}, "eps", "eps", lambda a, s: np.ones_like(s)),  # Ho et al. 2020, eq. 14
    ("simple", {}, "x0", "x0", lambda a, s: np.ones_like(s)),
    ("simple", {}, "v", "v", lambda a, s: np.ones_like(s)),  # Salimans & Ho 2022, "SNR + 1"
    ("simple", {}, "flow", "flow", lambda a, s: np.ones_like(s)),  # Liu et al. 2022, eq. 1
    ("simple", {}, "edm", "x0", lambda a, s: ((s / a) ** 2 + 0.25) / (s / a * 0.5) ** 2),  # Karras et al. 2022
    ("learned", {}, "edm", "x0", lambda a, s: ((s / a) ** 2 + 0.25) / (s / a * 0.5) ** 2),  # Karras et al. 2024
    ("x0", {}, "v", "x0", lambda a, s: np.ones_like(s)),
    ("snr", {}, "x0", "eps", lambda a, s: np.ones_like(s)),
    ("snr", {}, "x0", "x0", lambda a, s: a**2 / s**2),
    ("flow", {}, "x0", "flow", lambda a, s: np.ones_like(s)),  # Li & He 2025, table 1
    ("flow", {"min_sigma": 0.3}, "eps", "flow", lambda a, s: (s / np.maximum(s, 0.3)) ** 2),  # the clamp of JiT's code
    ("truncated_snr", {}, "v", "x0", lambda a, s: np.where(a > s, (a / s) ** 2, 1.0)),  # Salimans & Ho 2022, sec. 4
    ("truncated_snr", {}, "v", "eps", lambda a, s: np.where(a > s, 1.0, (s / a) ** 2)),
    ("min_snr", {}, "eps", "eps", lambda a, s: np.minimum((a / s) ** 2, 5) / (a / s) ** 2),  # Hang et al. 2023
    ("min_snr", {}, "v", "v", lambda a, s: np.minimum((a / s) ** 2, 5) / ((a / s) ** 2 + 1)),
    ("min_snr", {"gamma": 1.5}, "x0", "x0", lambda a, s: np.minimum((a / s) ** 2, 1.5)),
    ("p2", {}, "eps", "eps", lambda a, s: 1 / (1 + (a / s) ** 2)),  # Choi et al. 2022, eq. 8
    ("p2", {"gamma": 0.5, "k": 3.0}, "x0", "eps", lambda a, s: (3 + (a / s) ** 2) ** -0.5),
    ("edm", {}, "x0", "x0", lambda a, s: ((s / a) ** 2 + 0.25) / (s / a * 0.5) ** 2),
    ("edm", {"sigma_data": 1.1}, "eps", "x0", lambda a, s: ((s / a) ** 2 + 1.21) / (s / a * 1.1) ** 2),
]
SCHEDULES = {
    "preserving": noise_schedules.cosine(100),
    "exploding": noise_schedules.edm(100),
    "flow": noise_schedules.rectified_flow(100),
    "continuous": noise_schedules.linear(100, continuous=True),
}
TIMES = np.array([1.0, 5.0, 20.0, 50.0, 80.0, 98.0])


def errors(x0, x0_hat, x, alpha, sigma):
    """Weight of the error of x_0_hat, as defined in each paper."""

    def read(x0):
        eps = (x - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0}

    right, predicted = read(x0), read(x0_hat)
    return {name: (right[name] - predicted[name]) ** 2 for name in right}


def test_the_table_is_complete():
    assert {row[0] for row in PAPERS} == set(choices(loss_weighting))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
@pytest.mark.parametrize("row", PAPERS, ids=[f"{r[0]} {r[1]} {r[2]} as {r[3]}" for r in PAPERS])
def test_weighted_losses_equal_the_papers(row, schedule):
    name, options, parameterization, of, weight = row
    if name == "min_snr" and of == "v" and schedule is not SCHEDULES["preserving"]:
        pytest.skip("the paper's v preserves variance")
    noise = schedule(TIMES)
    c = choices(parameterizations)[parameterization](noise)
    found = np.asarray(choices(loss_weighting)[name](noise, c, **options), np.float64)
    alpha, sigma = (np.asarray(leaf, np.float64) for leaf in noise[1:])
    x0, x0_hat, eps = np.random.default_rng(0).normal(size=(3, len(TIMES)))
    error = errors(x0, x0_hat, alpha * x0 + sigma * eps, alpha, sigma)
    np.testing.assert_allclose(found * error["x0"], weight(alpha, sigma) * error[of], rtol=1e-4)
    assert found.shape == TIMES.shape


SPACES = {"x0": "x0", "eps": "snr", "flow": "flow"}  # weighting by the space of the loss


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("prediction", ["x0", "eps", "flow"])
def test_losses_of_predictions_in_other_spaces(prediction, space):
    """The nine losses of JiT (Li & He 2025), table 1, as |target - prediction|^2 in the space of the loss."""
    noise = noise_schedules.rectified_flow(100, continuous=True, end=0.99)(np.array([1.0, 20.0, 60.0, 99.0, 100.0]))
    sigma = np.asarray(noise.sigma, np.float64)
    x0, eps, output = np.random.default_rng(0).normal(size=(3, len(sigma)))
    x = (1 - sigma) * x0 + sigma * eps
    x0_hat, eps_hat = {
        "x0": lambda: (output, (x - (1 - sigma) * output) / sigma),
        "eps": lambda: ((x - sigma * output) / (1 - sigma), output),
        "flow": lambda: (x - sigma * output, x + (1 - sigma) * output),
    }[prediction]()
    difference = {"x0": x0 - x0_hat, "eps": eps - eps_hat, "flow": (eps - x0) - (eps_hat - x0_hat)}[space]
    c = choices(parameterizations)[prediction](noise)
    found = choices(loss_weighting)[SPACES[space]](noise, c) * (c.skip * x + c.out * output - x0) ** 2
    np.testing.assert_allclose(found, difference**2, rtol=2e-3)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_simple_weighting_is_the_error_of_the_networks_output(schedule):
    """Karras et al. 2022, eq. 8: for the parameterization edm lambda(sigma) c_out^2 = 1."""
    noise = schedule(TIMES)
    c = parameterizations.edm(noise)
    for weights in (loss_weighting.simple(noise, c), loss_weighting.edm(noise, c)):
        np.testing.assert_allclose(weights * np.asarray(c.out) ** 2, np.ones(len(TIMES)), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(choices(loss_weighting)))
def test_weights_without_signal_are_finite(name):
    noise = noise_schedules.linear(100).with_zero_terminal_snr()(100.0)
    expected = {
        "simple": 1,
        "x0": 1,
        "flow": 1,
        "snr": 0,
        "truncated_snr": 1,
        "min_snr": 0,
        "p2": 0,
        "edm": 4,
        "learned": 1,
    }[name]
    np.testing.assert_allclose(choices(loss_weighting)[name](noise, parameterizations.v(noise)), expected, rtol=1e-6)
