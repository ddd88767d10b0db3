"""Masked diffusion of tokens: closed forms, and exact conditionals of a joint distribution as the network."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import masked, masking_schedules, unmasking
from diffjax.registry import choices

N, K = 3, 3  # tokens and their values
MASK = K
STATES = np.array(list(itertools.product(range(K), repeat=N)))
JOINT = np.random.default_rng(0).dirichlet(np.full(K**N, 0.3))
MASKS = np.array(list(itertools.product((False, True), repeat=N)))[1:]  # all but the empty one
SCHEDULES = {  # schedule, and its weight -alpha' / (1 - alpha)
    "linear": (masking_schedules.linear, lambda t: 1 / t),
    "cosine": (masking_schedules.cosine, lambda t: np.pi / 2 * np.tan(np.pi / 2 * (1 - t))),
    "polynomial": (functools.partial(masking_schedules.polynomial, power=3.0), lambda t: 3 / t),
}


def predict(tokens, sharpness=1.0):
    """Returns the logits of the exact conditionals of JOINT, times `sharpness`."""
    is_consistent = ((tokens[:, None] == MASK) | (tokens[:, None] == STATES[None])).all(axis=-1)
    weights = is_consistent * JOINT[None]
    marginals = jnp.einsum("bs,snk->bnk", weights, jax.nn.one_hot(STATES, K)) / weights.sum(axis=1)[:, None, None]
    return sharpness * jnp.log(marginals)


def cross_entropy(tokens, masked_tokens, sharpness=1.0):
    log_p = jax.nn.log_softmax(predict(masked_tokens, sharpness), axis=-1)
    return -jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]


@functools.cache
def bounds(sharpness):
    """Bound of -log p of each state: the expectation over masks, integrated over times by quadrature, by schedule."""
    tokens = np.repeat(STATES, len(MASKS), axis=0)
    is_masked = np.tile(MASKS, (len(STATES), 1))
    nats = cross_entropy(tokens, jnp.where(is_masked, MASK, tokens), sharpness)
    sums = np.where(is_masked, nats, 0.0).sum(axis=1).reshape(len(STATES), len(MASKS))
    nodes, node_weights = np.polynomial.legendre.leggauss(60)
    t, counts = (nodes + 1) / 2, MASKS.sum(axis=1)

    def bound(schedule):
        p = np.asarray(schedule(t), np.float64)[:, None]
        of_masks = p**counts * (1 - p) ** (N - counts)
        weight = np.asarray(masked.elbo_weight(schedule, jnp.asarray(t)))
        return sums @ ((node_weights / 2 * weight)[:, None] * of_masks).sum(axis=0)

    return {name: bound(schedule) for name, (schedule, _) in SCHEDULES.items()}


def test_the_table_of_schedules_is_complete():
    assert set(SCHEDULES) == set(choices(masking_schedules))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_rises_from_zero_to_one_and_has_the_weight_of_its_derivative(name):
    schedule, weight = SCHEDULES[name]
    t = np.linspace(0, 1, 21)
    probability = np.asarray(schedule(jnp.asarray(t)))
    np.testing.assert_allclose(probability[[0, -1]], [0, 1], atol=1e-6)
    assert (np.diff(probability) > 0).all()
    alpha = {"linear": 1 - t, "cosine": 1 - np.cos(np.pi / 2 * (1 - t)), "polynomial": 1 - t**3}[name]
    np.testing.assert_allclose(1 - probability, alpha, atol=1e-6)
    np.testing.assert_allclose(masked.elbo_weight(schedule, jnp.asarray(t[1:])), weight(t[1:]), rtol=1e-4, atol=1e-6)
    fractions = masked.masked_fractions(schedule, 4, capacity=6)
    np.testing.assert_allclose(fractions, [*schedule(jnp.asarray([1, 0.75, 0.5, 0.25, 0.0])), 0, 0], atol=1e-6)


def test_a_power_out_of_range_raises():
    with pytest.raises(ValueError, match="power=0: must be a finite number above 0"):
        masking_schedules.polynomial(jnp.zeros(1), power=0.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bound_is_the_likelihood_for_exact_conditionals_and_above_it_for_others(name):
    nll = -np.log(JOINT)
    np.testing.assert_allclose(bounds(1.0)[name], nll, rtol=1e-4)
    np.testing.assert_allclose(bounds(0.5)[name], bounds(0.5)["linear"], rtol=1e-4)  # the schedule does not matter
    assert JOINT @ (bounds(0.5)[name] - nll) > 0.1


def test_both_estimates_of_the_bound_are_unbiased():
    """By numbers of masked tokens, and by weights at random times as in training."""
    tokens, keys = jnp.tile(STATES[5], (20_000, 1)), jax.random.split(jax.random.key(0), 20_000)
    nats_of = functools.partial(cross_entropy, sharpness=0.5)

    @jax.jit
    def estimates(keys):
        by_count = masked.elbo_of_count(keys, functools.partial(nats_of, tokens), tokens, MASK, samples=2)
        t = masked.spread_times(jnp.asarray(0.3), jnp.arange(len(keys)), len(keys))
        masked_tokens = masked.mask_each(keys, tokens, masking_schedules.cosine(t), MASK)
        nats = jnp.where(masked_tokens == MASK, nats_of(tokens, masked_tokens), 0.0).sum(axis=1)
        return by_count, masked.elbo_weight(masking_schedules.cosine, t) * nats

    by_count, by_time = map(np.asarray, estimates(keys))
    expected = bounds(0.5)["linear"][5]
    np.testing.assert_allclose(by_count.mean(), expected, rtol=0.02)
    np.testing.assert_allclose(by_time.mean(), expected, rtol=0.05)
    assert by_count.std() < by_time.std() / 2


def test_masks_have_a_probability_or_a_number():
    tokens, keys = jnp.zeros((6000, 5), jnp.int32), jax.random.split(jax.random.key(1), 6000)
    probability = jnp.where(jnp.arange(6000) < 3000, 0.2, 0.9)
    is_masked = np.asarray(masked.mask_each(keys, tokens, probability, MASK) == MASK)
    np.testing.assert_allclose(is_masked[:3000].mean(axis=0), 0.2, atol=0.04)
    np.testing.assert_allclose(is_masked[3000:].mean(axis=0), 0.9, atol=0.04)
    count = jnp.arange(6000) % 6
    is_masked = np.asarray(masked.mask_count_each(keys, tokens, count, MASK) == MASK)
    np.testing.assert_array_equal(is_masked.sum(axis=1), count)
    np.testing.assert_allclose(is_masked.mean(axis=0), 0.5, atol=0.04)


def test_times_are_in_equal_intervals():
    times = np.asarray(masked.spread_times(jnp.asarray(0.7), jnp.arange(8), 8))
    np.testing.assert_array_equal(np.sort(np.floor(times * 8)), np.arange(8))
    assert times.min() >= masked.FIRST_TIME and times.max() <= 1


SIZE, STEPS = 4000, 64
TRACES = []


@functools.partial(jax.jit, static_argnames="sampler")
def sampled(fractions, steps, tokens, sampler, **options):
    TRACES.append(sampler)
    unmask = functools.partial(choices(unmasking)[sampler], **options)
    keys = jax.random.split(jax.random.key(2), len(tokens))
    pick = {"mask_token": MASK, "sample_tokens": jax.vmap(jax.random.categorical)}
    return masked.sample(keys, predict, unmask, tokens, fractions, steps, **pick)


def histogram(steps, sampler, tokens=None, **options):
    """Frequency of each state among samples."""
    tokens = jnp.full((SIZE, N), MASK) if tokens is None else tokens
    fractions = masked.masked_fractions(masking_schedules.linear, steps, capacity=STEPS)
    samples = np.asarray(sampled(fractions, steps, tokens, sampler, **options))
    assert samples.max() < MASK
    return np.bincount(samples @ K ** np.arange(N)[::-1], minlength=K**N) / len(samples)


def total_variation(p, q):
    return 0.5 * np.abs(p - q).sum()


def test_samples_have_the_joint_distribution_in_many_steps_and_independent_tokens_in_one():
    marginals = [np.bincount(STATES[:, i], JOINT) for i in range(N)]
    product = functools.reduce(np.multiply.outer, marginals).ravel()
    assert total_variation(product, JOINT) > 0.2
    assert total_variation(histogram(STEPS, "ancestral_unmasking"), JOINT) < 0.05
    assert total_variation(histogram(1, "ancestral_unmasking"), product) < 0.05
    one_each = {"choice_temperature": 1e6}  # one token per step, in random order
    assert total_variation(histogram(N, "confidence", **one_each), JOINT) < 0.05
    assert total_variation(histogram(1, "confidence", **one_each), product) < 0.05
    assert sorted(TRACES) == ["ancestral_unmasking", "confidence"]  # steps and options are traced


@pytest.mark.parametrize("sampler", sorted(choices(unmasking)))
def test_known_tokens_do_not_change_and_condition_the_others(sampler):
    tokens = jnp.tile(jnp.asarray([MASK, 1, 2]), (SIZE, 1))
    steps = {"ancestral_unmasking": STEPS, "confidence": 2}[sampler]
    expected = np.where((STATES[:, 1:] == [1, 2]).all(axis=1), JOINT, 0.0)
    assert total_variation(histogram(steps, sampler, tokens), expected / expected.sum()) < 0.05


@pytest.mark.parametrize("schedule", [masking_schedules.linear, masking_schedules.cosine])
@pytest.mark.parametrize(("total", "steps"), [(16, 8), (16, 16), (16, 5), (64, 12), (7, 20)])
def test_confidence_unmasks_the_scheduled_numbers_of_the_most_probable_tokens(schedule, total, steps):
    fractions = masked.masked_fractions(schedule, steps)
    rng, is_masked, left = np.random.default_rng(0), np.ones(total, bool), [total]
    for i in range(steps):
        step = masked.UnmaskingStep(fractions[i], fractions[i + 1], jnp.asarray(1 - (i + 1) / steps))
        log_p = rng.normal(size=total)
        keeps = np.asarray(
            unmasking.confidence(
                jax.random.key(i), jnp.asarray(log_p), jnp.asarray(is_masked), total, step, choice_temperature=0.0
            )
        )
        if (is_masked & ~keeps).any() and (is_masked & keeps).any():
            assert log_p[is_masked & keeps].min() > log_p[is_masked & ~keeps].max()
        is_masked &= ~keeps
        left.append(is_masked.sum())
    fraction = {"linear": lambda r: 1 - r, "cosine": lambda r: math.cos(math.pi / 2 * r)}[schedule.__name__]
    expected = [total]
    for i in range(1, steps + 1):
        expected.append(max(0, min(math.floor(total * fraction(i / steps) + 1e-9), expected[-1] - 1)))
    assert left == expected and left[-1] == 0
    assert -np.sum(np.diff(left)) == total


def test_noise_on_the_confidence_ends_with_the_last_step():
    """With noise the choice is random in the first step; without steps that follow, it is greedy."""
    log_p, is_masked = jnp.arange(8.0), jnp.ones(8, bool)
    keys = jax.random.split(jax.random.key(0), 200)

    def keeps_of(remaining):
        step = masked.UnmaskingStep(jnp.asarray(1.0), jnp.asarray(0.5), jnp.asarray(remaining))
        return np.asarray(jax.vmap(lambda key: unmasking.confidence(key, log_p, is_masked, 8, step))(keys))

    np.testing.assert_array_equal(keeps_of(0.0), np.tile(np.arange(8) >= 4, (200, 1)))
    first = keeps_of(1.0).mean(axis=0)
    assert (keeps_of(1.0).sum(axis=1) == 4).all() and 0 < first[0] < first[-1] < 1
