"""Power-function averages: against quadrature, NumPy and trajectories whose averages are known."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.runs import averages
from diffjax.runs.loading import load
from diffjax.runs.power_functions import exponent, inner_product, relative_length, solve, update_weight
from diffjax.runs.workdir import Workdir
from diffjax.training.train import check
from tests import tiny
from tests.command_line import entries, launch, refused, sample

LENGTHS = (0.05, 0.10)


def profile(t, gamma, tau):
    return np.where(tau <= t, (gamma + 1) / t * (tau / t) ** gamma, 0.0)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_length_is_the_standard_deviation_of_the_profile(length):
    gamma = exponent(length)
    np.testing.assert_allclose(relative_length(gamma), length, rtol=1e-9)
    tau = (np.arange(200_000) + 0.5) / 200_000
    p = profile(1.0, gamma, tau) / 200_000
    mean = (p * tau).sum()
    np.testing.assert_allclose(np.sqrt((p * (tau - mean) ** 2).sum()), length, rtol=1e-4)


def test_gamma_of_the_lengths_of_the_paper():
    """EDM2, section 3.1: sigma_rel = 0.05 and 0.10 are gamma = 16.97 and 6.94."""
    np.testing.assert_allclose([exponent(length) for length in LENGTHS], [16.97, 6.94], atol=0.005)


@pytest.mark.parametrize(("t_a", "t_b"), [(100, 100), (40, 100), (100, 40)])
def test_inner_products_are_integrals(t_a, t_b):
    tau = (np.arange(1_000_000) + 0.5) / 10_000
    expected = (profile(t_a, 6.94, tau) * profile(t_b, 16.97, tau)).sum() / 10_000
    np.testing.assert_allclose(inner_product(t_a, 6.94, t_b, 16.97), expected, rtol=1e-4)


def test_the_updates_have_the_weights_of_the_profile():
    """The weight of step s in the average at t is the integral of the profile over (s - 1, s]."""
    gamma, t = exponent(0.1), 200
    weights = np.zeros(t + 1)
    for step in range(1, t + 1):
        share = float(update_weight(gamma, jnp.asarray(step)))
        weights *= 1 - share
        weights[step] = share
    s = np.arange(t + 1)
    expected = np.diff((s / t) ** (gamma + 1), prepend=0)
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-9)


def test_the_update_is_accurate_after_many_steps():
    """In float32 1 - 1 / t has an error of 6 % of 1 / t at t = 1,000,000."""
    t, gamma = 1_000_000, exponent(0.05)
    expected = -np.expm1((gamma + 1) * np.log1p(-1.0 / t))
    np.testing.assert_allclose(update_weight(gamma, jnp.asarray(t)), expected, rtol=1e-5)


STEPS = [t for t in range(50, 1001, 50) for _ in LENGTHS]


def test_a_stored_average_reconstructs_itself():
    x, error = solve(STEPS, LENGTHS * 20, 1000, 0.10)
    np.testing.assert_allclose(x, np.eye(40)[39], atol=1e-8)
    assert error < 1e-6


@pytest.mark.parametrize("length", [0.04, 0.07, 0.15, 0.2])
def test_another_length_of_a_known_trajectory(length):
    """theta(tau) = sin(tau / 100) + tau / 500, constant between steps, averaged exactly in float64."""
    s = np.arange(0, 1001)
    theta = np.sin(s / 100) + s / 500

    def exact(t, sigma):
        weights = np.diff((s[: t + 1] / t) ** (exponent(sigma) + 1), prepend=0)
        return (weights * theta[: t + 1]).sum()

    stored = [exact(t, sigma) for t, sigma in zip(STEPS, LENGTHS * 20, strict=True)]
    x, error = solve(STEPS, LENGTHS * 20, 1000, length)
    np.testing.assert_allclose(x @ stored, exact(1000, length), rtol=2e-3)
    assert error < 0.15
    other = exact(1000, 0.10)
    assert abs(x @ stored - exact(1000, length)) < 0.05 * abs(other - exact(1000, length))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that stores averages every step, and was stopped once."""
    folder = tmp_path_factory.mktemp("averages")
    changes = {"train__ema_lengths": LENGTHS, "train__ema_every": 1, "train__learning_rate_schedule": "constant"}
    quiet = {"train__num_preview_samples": 0, "parallel__num_devices": 1, "train__keep_last": 0}
    config = tiny.write(folder / "config.py", model=tiny.DIT, train__checkpoint_every=1, **changes, **quiet)
    command = ["train", f"--config={config}", f"--workdir={folder / 'run'}"]
    assert launch(*command, "--config.train.steps=2") == 0
    assert launch(*command) == 0
    return folder / "run"


@pytest.mark.slow
def test_a_run_stores_averages_from_which_another_is_reconstructed(run, tmp_path, capsys):
    """With a snapshot at every step the parameters of each step are known, and so is every average."""
    assert averages.list_snapshots(Workdir(run)) == [1, 2, 3, 4]
    params = [load(run, step, averaged=False).variables["params"] for step in (1, 2, 3, 4)]

    def exact(length):
        weights = np.diff((np.arange(5) / 4) ** (exponent(length) + 1))
        return jax.tree.map(
            lambda *leaves: sum(w * np.float64(leaf) for w, leaf in zip(weights, leaves, strict=True)), *params
        )

    for length in LENGTHS:
        actual = load(run, ema_length=length)
        assert (actual.step, actual.ema_length) == (4, length)
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5),
            actual.variables["params"],
            exact(length),
        )
    third, expected = (jax.tree.leaves(tree) for tree in (load(run, ema_length=0.08).variables["params"], exact(0.08)))
    moved = max(np.abs(last - e).max() for last, e in zip(jax.tree.leaves(params[-1]), expected, strict=True))
    assert max(np.abs(a - e).max() for a, e in zip(third, expected, strict=True)) < 0.2 * moved
    assert launch("ema", f"--workdir={run}", "--length=0.08,0.12") == 0
    assert "relative error of the profile" in capsys.readouterr().out
    without_file = load(run, 3, ema_length=0.08)
    assert without_file.step == 3
    first = sample(run, tmp_path, "--num=4", "--ema_length=0.08")["images"]
    (run / "averages" / "length_0.08_00000004.safetensors").unlink()
    np.testing.assert_array_equal(sample(run, tmp_path, "--num=4", "--ema_length=0.08")["images"], first)


def test_a_sweep_over_lengths(run, capsys):
    lengths = "--ema_length=0.05,0.1"
    assert launch("sweep", f"--workdir={run}", lengths, "--steps=2,4", "--num=10", "--metrics=fd_pixels") == 0
    cells = {(e["settings"]["ema_length"], e["settings"]["steps"]): e["metrics"]["fd_pixels"] for e in entries(run)}
    assert cells.keys() == {(0.05, 2), (0.05, 4), (0.1, 2), (0.1, 4)}
    assert "1 compilation(s)" in capsys.readouterr().out
    assert cells[0.05, 2] != cells[0.1, 2]


def test_what_cannot_be_reconstructed_is_refused(run, trained_runs, tmp_path, capsys):
    out = f"--out={tmp_path / 'no.png'}"
    other = trained_runs("pixel")
    assert "has no averages" in refused(capsys, "sample", f"--workdir={other}", out, "--ema_length=0.1")
    assert "has none of this step" in refused(
        capsys, "sample", f"--workdir={run}", out, "--ema_length=0.1", "--checkpoint=9"
    )
    assert "--length=0.4: must be" in refused(capsys, "ema", f"--workdir={run}", "--length=0.4")
    for lengths in ((0.05,), (0.05, 0.05), (0.05, 0.05 + 1e-12), (0.05, 0.5)):
        config = tiny.config(train__ema_lengths=lengths)
        with pytest.raises(UserError, match=r"train\.ema_lengths"):
            check(config)
    with pytest.raises(UserError, match=r"train\.ema_every=5: requires train\.ema_lengths"):
        check(tiny.config(train__ema_every=5))
