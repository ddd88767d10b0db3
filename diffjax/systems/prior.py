"""Priors over the codes of a trained autoencoder, drawn code after code.

A gated PixelCNN over one level (VQ-VAE: van den Oord et al. 2017, sec. 4.2), or a causal transformer over all levels,
the coarsest first (in the place of VQ-VAE-2's PixelSNAILs: Razavi et al. 2019, sec. 3.2). Codes are made of the images
in the training step, by the codec, which is not trained further.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.errors import UserError, unknown
from diffjax.latents import logits as of_logits
from diffjax.nn import pixelcnn, transformer
from diffjax.nn.layers import Dense
from diffjax.systems.networks import check_buildable, classes_of, dtype_of, make
from diffjax.systems.pixels import to_unit_range
from diffjax.systems.settings import make_settings
from diffjax.typing import Aux, Codec, Codes, ImageSpec, Labels, Objective, PRNGKey, PRNGKeys, System, Variables

Params = dict[str, Any]
Pick = Callable[[PRNGKeys, Float[Array, "B K"]], Array]  # draws a code from logits
_SETTINGS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}  # top_k 0, top_p 1: all codes


def build(config, spec: ImageSpec, codec: tuple[System, Variables] | None = None) -> System:
    """The prior of `config` over the codes of `codec`. Raises UserError for what does not exist or does not fit."""
    if codec is None:
        raise UserError("system=prior is over the codes of a trained autoencoder: set --config.codec=WORKDIR")
    autoencoder, frozen = codec
    described = _describe(autoencoder, frozen)
    if not described.grids:
        raise UserError(f"codec={config.codec} has no codes (a Gaussian latent): a prior needs vqvae or dvae")
    classes = classes_of(config, "model", spec)
    if config.model.architecture not in _MODELS:
        raise unknown("model.architecture", config.model.architecture, _MODELS)
    model = _MODELS[config.model.architecture].from_config(config, described, classes)
    values = spec.size**2 * spec.channels
    bits = 1 / math.log(2)

    def init(key):
        return {"params": {"model": model.init(key)}}

    def to_codes(variables, batch) -> Codes:
        return autoencoder.codec(variables["frozen"]["codec"]).to_codes(to_unit_range(batch["image"]))

    def loss(variables, batch, keys, moment):
        nats = model.nll(variables["params"]["model"], to_codes(variables, batch), batch["label"], keys)
        metrics = {"bits_per_code": bits * nats.mean(axis=-1), "bits_per_dim": bits * nats.sum(axis=-1) / values}
        return nats.mean(axis=-1), Aux(metrics)

    def likelihood(variables, keys, batch, samples):
        nats = model.nll(variables["params"]["model"], to_codes(variables, batch), batch["label"], None)
        return {"codes": bits * nats.sum(axis=-1) / values, "bits_per_code": bits * nats.mean(axis=-1)}

    def sample(variables, keys, condition, plan):
        pick = jax.vmap(functools.partial(of_logits.draw, **plan))
        codes = model.draw(variables["params"]["model"], keys, condition["label"], pick)
        return autoencoder.codec(variables["frozen"]["codec"]).from_codes(codes)

    def plan(sampler_config, **overrides):
        made = make_settings("prior", _SETTINGS, sampler_config, **overrides)
        if not (made["temperature"] > 0 and made["top_k"] >= 0 and 0 < made["top_p"] <= 1):
            raise UserError(
                f"temperature={made['temperature']:g}, top_k={made['top_k']}, top_p={made['top_p']:g}: a temperature "
                "above 0 (top_k=1 is greedy), a top_k from 0, a top_p above 0 and up to 1"
            )
        return made

    plan(config.sampler)
    check_buildable(init)
    return System(
        Objective(init, {"model": loss}), classes, plan, sample, likelihood=likelihood, frozen={"codec": frozen}
    )


@dataclasses.dataclass(frozen=True)
class CodeModel(abc.ABC):
    """p(codes | label), each code given those before it.

    Attributes:
      network: sees the codes so far.
      grids: h, w, n of each level, the coarsest first.
      size: values of a code.
      classes: 0: no labels.
    """

    network: nn.Module
    grids: tuple[tuple[int, int, int], ...]
    size: int
    classes: int

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config, codec: Codec, classes: int) -> "CodeModel":
        """Of `config.model`. Raises UserError."""

    @abc.abstractmethod
    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters, which find all codes equally likely."""

    @abc.abstractmethod
    def nll(self, params: Params, codes: Codes, label: Labels, dropout_keys: PRNGKeys | None) -> Float[Array, "B N"]:
        """-log p of each code in nats, in the order they are drawn in."""

    @abc.abstractmethod
    def draw(self, params: Params, keys: PRNGKeys, label: Labels, pick: Pick) -> Codes:
        """Codes drawn one after another by `pick`."""


class PixelCNNPrior(CodeModel):
    """A gated PixelCNN over one level; a label shifts every gate."""

    @classmethod
    def from_config(cls, config, codec, classes):
        if len(codec.grids) > 1 or codec.grids[0][2] > 1:
            raise UserError(
                "model.architecture=pixelcnn models one level with one code a position, and this codec has "
                f"{len(codec.grids)} levels of {codec.grids[0][2]}: choose transformer"
            )
        fields = _fields(config)
        network = make(pixelcnn.PixelCNN, fields, "model", outputs=codec.vocabulary, dtype=dtype_of(config))
        return cls(network, codec.grids, codec.vocabulary, classes)

    def init(self, key):
        network_key, embed_key, label_key = jax.random.split(key, 3)
        height, width, _ = self.grids[0]
        features = self.network.features
        x, condition = jnp.zeros((1, height, width, features)), jnp.zeros((1, 1, 1, features))
        params = {
            "network": self.network.init(network_key, x, condition if self.classes else None)["params"],
            "embedding": jax.random.normal(embed_key, (self.size, features)),
        }
        return params | ({"label": jax.random.normal(label_key, (self.classes, features))} if self.classes else {})

    def _condition(self, params, label):
        return params["label"][label][:, None, None, :] if self.classes else None

    def nll(self, params, codes, label, dropout_keys):
        (code,) = (code[..., 0] for code in codes)
        x = params["embedding"][code]
        logits = self.network.apply({"params": params["network"]}, x, self._condition(params, label), dropout_keys)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, code)
        return nats.reshape(len(nats), -1)

    def draw(self, params, keys, label, pick):
        def choose(keys, logits, place):
            code = pick(keys, logits)
            return code, params["embedding"][code]

        condition = self._condition(params, label)
        drawn = pixelcnn.generate(self.network, params["network"], choose, keys, condition, *self.grids[0][:2])
        return (drawn[..., None],)


class TransformerPrior(CodeModel):
    """A causal transformer over the codes of all levels in one sequence, which a label begins."""

    @classmethod
    def from_config(cls, config, codec, classes):
        network = make(transformer.Transformer, _fields(config), "model", dtype=dtype_of(config))
        return cls(network, codec.grids, codec.vocabulary, classes)

    @property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(math.prod(grid) for grid in self.grids)

    def init(self, key):
        keys, width = jax.random.split(key, 5), self.network.width

        def table(key, *shape):
            return 0.02 * jax.random.normal(key, (*shape, width))  # as GPT-2's

        x = jnp.zeros((1, sum(self._lengths), width))
        return {
            "network": self.network.init(keys[0], x)["params"],
            "embedding": table(keys[1], len(self.grids), self.size),
            "place": table(keys[2], sum(self._lengths)),
            "start": table(keys[3], max(self.classes, 1)),
            "head": self._head.init(keys[4], x)["params"],
        }

    @property
    def _head(self) -> Dense:
        return Dense(self.size, "zero")

    def _start(self, params, label):
        """What the first code is predicted from: [B, 1, W]."""
        row = label if self.classes else jnp.zeros_like(label)
        return params["start"][row][:, None, :]

    def _logits(self, params, h):
        return self._head.apply({"params": params["head"]}, h)

    def nll(self, params, codes, label, dropout_keys):
        flat = [code.reshape(len(code), -1) for code in codes]
        x = jnp.concatenate([params["embedding"][level][code] for level, code in enumerate(flat)], axis=1)
        x = x + params["place"][None]
        x = jnp.concatenate([self._start(params, label), x[:, :-1]], axis=1)
        h = self.network.apply({"params": params["network"]}, x, None, dropout_keys)
        return optax.softmax_cross_entropy_with_integer_labels(self._logits(params, h), jnp.concatenate(flat, axis=1))

    def draw(self, params, keys, label, pick):
        level_of = jnp.repeat(
            jnp.arange(len(self.grids)), jnp.array(self._lengths), total_repeat_length=sum(self._lengths)
        )

        def choose(keys, h, position):
            code, place = pick(keys, self._logits(params, h)), position - 1  # the start is at position 0
            return code, params["embedding"][level_of[place], code] + params["place"][place][None, :]

        start, count = self._start(params, label), sum(self._lengths)
        drawn = transformer.generate(self.network, params["network"], choose, keys, start, count)
        parts = jnp.split(drawn, np.cumsum(self._lengths)[:-1], axis=1)
        return tuple(part.reshape(-1, *grid) for part, grid in zip(parts, self.grids, strict=True))


_MODELS = {"pixelcnn": PixelCNNPrior, "transformer": TransformerPrior}


def _fields(config) -> dict[str, Any]:
    return {n: v for n, v in config.model.items() if n not in ("architecture", "class_conditional")}


def _describe(system: System, variables: Variables) -> Codec:
    """The codec of `variables`, for its shapes alone: nothing is computed."""
    found = []
    jax.eval_shape(lambda variables: found.append(system.codec(variables)) or 0, variables)
    return found[0]
