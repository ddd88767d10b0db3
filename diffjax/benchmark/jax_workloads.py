"""Workloads of the comparison with PyTorch, in diffjax.

`build` returns a function that computes one step to its end, such as a training step, compiled.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax.benchmark.cases import CASES, make_config, token_grid
from diffjax.benchmark.random_inputs import NUM_EXAMPLES, random_batch
from diffjax.latents import token_sampling
from diffjax.models.base import Autoencoder
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.networks import dtype_of
from diffjax.models.priors.prefix import CaptionPrefix
from diffjax.models.priors.token_models import TransformerPrior
from diffjax.nn.transformer import Transformer
from diffjax.runs.datasets import image_spec
from diffjax.runs.loading import build_model
from diffjax.training.compiled_step import compile_init, compile_step, make_optimizers
from diffjax.training.sharding import Devices
from diffjax.typing import TextSpec


class Workload(NamedTuple):
    """A compiled workload.

    Attributes:
      run: computes one step, to its end.
      parameters: number of the network's parameters.
      units: what `run` computes, in units of the reported seconds.
      compile_seconds: seconds of tracing and compilation.
    """

    run: Callable[[], Any]
    parameters: int
    units: int
    compile_seconds: float


def build(name: str, scale: str, dtype: str, batch_size: int) -> Workload:
    """Returns the workload of a case of CASES; for the arguments see `make_config`."""
    config = make_config(name, scale, dtype, batch_size)
    builders = {
        "train": _train,
        "train_clip": _train,
        "reconstruct": _reconstruct,
        "predict": _predict,
        "sample": _sample,
        "decode": _decode,
    }
    return builders[CASES[name].workload](config)


def _train(config: ConfigDict) -> Workload:
    spec, model = image_spec(config), build_model(config, training=True)
    devices = Devices.create(**config.parallel)
    step, state = compile_step(config, model, make_optimizers(config, model), devices, NUM_EXAMPLES)
    batch = devices.put_batch(random_batch(config, spec, model))
    compiled, seconds = _compile(step, state, batch, {})
    states = [state]  # the state before a step is donated to it

    def run() -> None:
        new, metrics = compiled(states.pop(), batch, {})
        states.append(new)
        jax.block_until_ready(metrics)

    return Workload(run, _count(state.variables["params"]), 1, seconds)


def _reconstruct(config: ConfigDict) -> Workload:
    model = build_model(config)
    assert isinstance(model, Autoencoder)
    variables = _init(model.init)

    def reconstruct(variables: Any, images: Any) -> Any:
        codec = model.codec(variables)
        return codec.decode(codec.encode(images))

    images = _normal((config.train.batch_size, *_shape(config)))
    return _forward(reconstruct, variables, images)


def _predict(config: ConfigDict) -> Workload:
    model = build_model(config, abstract=True)
    assert isinstance(model, DiffusionModel)
    size, text = config.train.batch_size, config.parts.clip
    inputs = _normal((size, *model.data_space.shape)), jnp.full((size,), 500.0)
    context = _normal((size, text.text.length, text.text_encoder.width))
    init = functools.partial(model.network.init, context=context)
    variables = _init(lambda key: init(key, *inputs))
    return _forward(functools.partial(model.network.apply, context=context), variables, *inputs)


def _sample(config: ConfigDict) -> Workload:
    model, size = build_model(config), config.train.batch_size
    assert isinstance(model, DiffusionModel)
    variables = _init(model.init)
    settings, keys = model.make_settings(config.sampler), jax.random.split(jax.random.key(1), size)
    conditions = {"label": jnp.arange(size) % max(image_spec(config).classes, 1)}
    return _forward(model.sample, {**variables, "frozen": {}}, keys, conditions, settings)


def _decode(config: ConfigDict) -> Workload:
    model, size, side = config.model, config.train.batch_size, token_grid(config)
    network = Transformer(model.width, model.layers, model.heads, dtype=dtype_of(config))
    prefix = CaptionPrefix(TextSpec(config.text.length, config.text.vocabulary))
    prior = TransformerPrior(network, prefix, ((side, side, 1),), config.parts.codec.codebook.size)
    params = _init(prior.init)
    captions = jnp.zeros((size, config.text.length), jnp.int32)
    keys, known = jax.random.split(jax.random.key(1), size), jnp.zeros((size, 0), jnp.int32)

    def sample(variables: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:  # as in sampling of a run
        filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        choose = jax.vmap(functools.partial(token_sampling.sample, **filters))
        return prior.sample(variables["params"], keys, captions, choose, known)

    workload = _forward(sample, {"params": params}, jnp.float32(1.0), jnp.int32(0), jnp.float32(1.0))
    return workload._replace(units=side**2)


def _init(init: Callable[[Any], Any]) -> Any:
    """Returns initial variables, compiled as those of a run."""
    return compile_init(init, None)(jax.random.key(0))


def _forward(function: Callable[..., Any], variables: Any, *inputs: Any) -> Workload:
    compiled, seconds = _compile(jax.jit(function), variables, *inputs)
    run = lambda: jax.block_until_ready(compiled(variables, *inputs))  # noqa: E731
    return Workload(run, _count(variables["params"]), 1, seconds)


def _compile(function: Any, *arguments: Any) -> tuple[Callable[..., Any], float]:
    """Returns the compiled function, and the seconds that it took."""
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def _count(params: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _shape(config: ConfigDict) -> tuple[int, int, int]:
    spec = image_spec(config)
    return spec.size, spec.size, spec.channels


def _normal(shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
