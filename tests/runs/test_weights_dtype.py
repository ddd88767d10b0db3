"""Weights in bfloat16: half the memory, and the samples of rounded weights."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import diffjax
from diffjax.errors import UserError

TEXT = {"prompts": "a small red circle"}


def rounded(path, leaf):
    """Returns a kernel rounded to the nearest bfloat16, as float32."""
    is_kernel = getattr(path[-1], "key", None) == "kernel"
    return np.asarray(leaf).astype(jnp.bfloat16).astype(np.float32) if is_kernel else leaf


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pixel", {"steps": 2}),
        pytest.param("dalle", TEXT, marks=pytest.mark.slow),
        pytest.param("glide", TEXT, marks=pytest.mark.slow),
        pytest.param("unclip", TEXT, marks=pytest.mark.slow),
        pytest.param("vae", {}, marks=pytest.mark.slow),
        pytest.param("gan", {}, marks=pytest.mark.slow),
    ],
)
def test_samples_are_those_of_rounded_weights(name, options, trained_runs):
    run = diffjax.load(trained_runs(name))
    half = diffjax.load(trained_runs(name), weights_dtype="bfloat16")
    variables = jax.tree.map_with_path(rounded, run.variables)
    expected = dataclasses.replace(run, variables=variables).sample(2, **options)
    np.testing.assert_array_equal(half.sample(2, **options), expected)


def test_kernels_take_half_the_memory_and_codebooks_do_not_change(trained_runs):
    whole, half = (diffjax.load(trained_runs("dalle"), weights_dtype=dtype) for dtype in ("float32", "bfloat16"))
    sizes = [
        {jax.tree_util.keystr(path): leaf.nbytes for path, leaf in jax.tree_util.tree_leaves_with_path(run.variables)}
        for run in (whole, half)
    ]
    assert sizes[1] == {name: size // (2 if name.endswith("'kernel']") else 1) for name, size in sizes[0].items()}
    jax.tree.map(
        np.testing.assert_array_equal,
        half.variables["frozen"]["codec"]["codebook"],
        whole.variables["frozen"]["codec"]["codebook"],
    )


def test_an_unknown_type_is_refused(trained_runs):
    with pytest.raises(UserError, match="weights_dtype"):
        diffjax.load(trained_runs("pixel"), weights_dtype="int8")
