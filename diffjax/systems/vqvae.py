"""VQ-VAE (van den Oord et al. 2017); with `model.coarser_factors` VQ-VAE-2 (Razavi et al. 2019); VQGAN by its config.

With one level: encoder, codebook, decoder. With more, each further encoder shrinks the features of the one below it;
the top is quantised first, and every level below is told what those above have found (VQ-VAE-2, fig. 2). The decoder is
told all of them. Levels are counted from the finest.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array

from diffjax.diffusion.sampling import split
from diffjax.errors import UserError, unknown
from diffjax.latents import statistics
from diffjax.latents.quantizers import FiniteScalars, Quantized, Quantizer, VectorQuantizer
from diffjax.nn.autoencoders import vqvae
from diffjax.nn.layers import Dense
from diffjax.systems.autoencoder import Attempt, make_objective
from diffjax.systems.coder import Coder, Params
from diffjax.systems.networks import dtype_of
from diffjax.systems.pixels import to_unit_range
from diffjax.typing import Codec, ImageSpec, Latents, PRNGKey, PRNGKeys, System, Variables

_FEW = 0.05  # of the codes; with fewer in use a codebook has collapsed


def build(config, spec: ImageSpec, **frozen: Params) -> System:
    """The autoencoder of `config` for images of `spec`; `features` of a network are for the perceptual loss.

    Raises UserError for what does not exist or does not fit.
    """
    quantizer, settings = make_quantizer(config), config.codes
    levels = Levels.from_config(config, spec, quantizer)
    coder, names = levels.coder, levels.names

    def init(key):
        key, *keys = jax.random.split(key, 1 + len(names))
        fresh = {name: quantizer.init(k) for name, k in zip(names, keys, strict=True)}
        params = {**levels.init(key), "codes": {name: own for name, (own, _) in fresh.items()}}
        memory = {name: memory for name, (_, memory) in fresh.items()}
        return {"params": {"model": params}, "codes": memory, "latents": statistics.init()}

    def attempt(params, variables, batch, keys, moment):
        x, (encoder_keys, decoder_keys) = batch["image"], split(keys)
        z, found, latent = levels.encode(params, variables["codes"], x, encoder_keys)
        cost, memory, metrics = 0.0, {}, {}
        for name, one in zip(names, found, strict=True):
            cost += one.codebook + settings.commitment * one.commitment
            books = params["codes"][name], variables["codes"][name]
            memory[name], measured = quantizer.learn(*books, one, batch["index"], moment)
            suffix = f"_{name}" if len(names) > 1 else ""
            metrics |= {key + suffix: value for key, value in {"commitment": one.commitment, **measured}.items()}
        encoded = z[0] if len(names) == 1 else latent
        updated = {"codes": memory, "latents": statistics.moved(variables["latents"], encoded, moment)}
        return Attempt(latent, coder.decode(params, latent, x, decoder_keys), cost, metrics, updated)

    def prepare(variables, batch):
        """Codebooks fitted to the first batch, the coarsest first, as what those below see depends on them."""
        params, memory, x = variables["params"]["model"], variables["codes"], to_unit_range(batch["image"])
        for level, name in reversed(list(enumerate(names))):
            z, _, _ = jax.jit(levels.encode)(params, memory, x)
            own, remembered = quantizer.fit(params["codes"][name], memory[name], z[level])
            params = {**params, "codes": {**params["codes"], name: own}}
            memory = {**memory, name: remembered}
        return {**variables, "params": {**variables["params"], "model": params}, "codes": memory}

    def warn(metrics):
        used = min(value for name, value in metrics.items() if "codes_used" in name)
        if used >= _FEW or settings.restart_below or settings.kind == "fsq":
            return None
        return (
            f"less than {_FEW:.0%} of the codes are in use: the codebook has collapsed; set codes.restart_below, "
            "or codes.initial=data"
        )

    def codec(variables) -> Codec:
        params, memory = variables["params"]["model"], variables["codes"]
        scale = statistics.scale(variables["latents"])

        def encode(x):
            """Of one level the latents before they are quantised, as latent diffusion uses them."""
            z, _, latent = levels.encode(params, memory, x)
            return (z[0] if len(names) == 1 else latent) * scale

        def decode(z):
            if len(names) == 1:
                own = params["codes"][names[0]], memory[names[0]]
                z = quantizer.quantize(*own, z / scale).vectors * scale
            return coder.reconstruct(params, z / scale)

        def to_codes(x):
            return tuple(one.codes for one in reversed(levels.encode(params, memory, x)[1]))

        def from_codes(codes):
            vectors = [
                quantizer.lookup(params["codes"][name], memory[name], code)
                for name, code in zip(names, reversed(codes), strict=True)
            ]
            return coder.reconstruct(params, levels.join(params, vectors))

        return Codec(
            encode=encode,
            decode=decode,
            shape=levels.latent_shape,
            scale=scale,
            to_codes=to_codes,
            from_codes=from_codes,
            grids=tuple((*grid, quantizer.depth) for grid in reversed(levels.grids)),
            vocabulary=quantizer.vocabulary,
        )

    others = {"prepare": prepare if settings.initial != "normal" else None, "warn": warn}
    objective = make_objective(config, spec, coder, init, attempt, **others)
    return System(objective, classes=0, codec=codec if coder.pixelcnn is None else None, frozen=frozen)


@dataclasses.dataclass(frozen=True)
class Levels:
    """The networks between an image and its latents, finest level first.

    Attributes:
      coder: between the image and the features of the finest level.
      down, up: between those of a level and of the next coarser one.
      to_latent: from a level's features, and what those above found, to its latents; None where the features are it.
    """

    coder: Coder
    down: tuple[nn.Module, ...]
    up: tuple[nn.Module, ...]
    to_latent: tuple[Dense | None, ...]
    grids: tuple[tuple[int, int], ...]
    quantizer: Quantizer
    names: tuple[str, ...]

    @classmethod
    def from_config(cls, config, spec: ImageSpec, quantizer: Quantizer) -> "Levels":
        """Raises UserError where networks and images do not fit."""
        model, factors = config.model, tuple(config.model.get("coarser_factors", ()))
        if not factors:
            coder = Coder.from_config(config, spec, encoded=quantizer.channels)
            return cls(coder, (), (), (None,), (coder.grid,), quantizer, ("level_0",))
        width = model.get("z_channels", 0)
        if not width:
            raise UserError("model.coarser_factors needs model.z_channels, the width of the features between levels")
        coder = Coder.from_config(config, spec, encoded=width, hidden=0)
        grids = [coder.grid]
        for factor in factors:
            if grids[-1][0] % factor:
                raise UserError(
                    f"model.coarser_factors={factors}: a grid of {grids[-1][0]}x{grids[-1][0]} codes is not a multiple "
                    f"of {factor}"
                )
            grids.append((grids[-1][0] // factor, grids[-1][1] // factor))
        fields = {"dtype": dtype_of(config), "channels": width}
        return cls(
            coder=coder,
            down=tuple(vqvae.Encoder(width, factor=factor, **fields) for factor in factors),
            up=tuple(vqvae.Decoder(width, factor=factor, **fields) for factor in factors),
            to_latent=tuple(Dense(quantizer.channels, "torch") for _ in grids),
            grids=tuple(grids),
            quantizer=quantizer,
            names=tuple(f"level_{i}" for i in range(len(grids))),
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of what the decoder is given; of one level also of what the encoder says."""
        return (*self.grids[0], self.quantizer.channels + sum(up.outputs for up in self.up[:1]))

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters, without the codebooks."""
        coder_key, *keys = jax.random.split(key, 1 + len(self.grids))
        params, h = dict(self.coder.init(coder_key, jnp.zeros((1, *self.latent_shape)))), None
        for level, k in enumerate(keys):
            down_key, up_key, latent_key = jax.random.split(k, 3)
            top = level == len(self.grids) - 1
            if level:
                h = jnp.zeros((1, *self.grids[level - 1], self.down[0].outputs))
                params[f"down_{level}"] = self.down[level - 1].init(down_key, h)["params"]
                wide = self.quantizer.channels + (0 if top else self.up[0].outputs)
                joined = jnp.zeros((1, *self.grids[level], wide))
                params[f"up_{level}"] = self.up[level - 1].init(up_key, joined)["params"]
            if self.to_latent[level] is not None:
                h = jnp.zeros((1, 1, 1, self.down[0].outputs + (0 if top else self.up[0].outputs)))
                params[f"to_latent_{level}"] = self.to_latent[level].init(latent_key, h)["params"]
        return params

    def encode(
        self, params: Params, memory: Variables, x: Array, dropout_keys: PRNGKeys | None = None
    ) -> tuple[list[Latents], list[Quantized], Latents]:
        """Latents and codes of each level, and what the decoder is given."""
        features = [self.coder.encode(params, x, dropout_keys)]
        for level, down in enumerate(self.down, 1):
            features.append(down.apply({"params": params[f"down_{level}"]}, features[-1]))
        z, found = [None] * len(features), [None] * len(features)

        def quantize(level, context):
            h = _beside(features[level], context)
            if self.to_latent[level] is not None:
                h = self.to_latent[level].apply({"params": params[f"to_latent_{level}"]}, h)
            books = params["codes"][self.names[level]], memory[self.names[level]]
            z[level], found[level] = h, self.quantizer.quantize(*books, h)
            return found[level].vectors

        latent = self._descend(params, quantize)
        return z, found, latent

    def join(self, params: Params, vectors: list[Latents]) -> Latents:
        """What the decoder is given, of the vectors of each level's codes."""
        return self._descend(params, lambda level, context: vectors[level])

    def _descend(self, params: Params, vectors_at: Callable[[int, Array | None], Latents]) -> Latents:
        """From the coarsest level down: each level's vectors, beside what those above it came to."""
        context = None
        for level in reversed(range(len(self.grids))):
            joined = _beside(vectors_at(level, context), context)
            if level:
                context = self.up[level - 1].apply({"params": params[f"up_{level}"]}, joined)
        return joined


def make_quantizer(config) -> Quantizer:
    """The quantiser of a config's section `codes`. Raises UserError."""
    c, channels = config.codes, config.model.latent_channels
    kinds = ("vq", "residual", "product", "fsq")
    for name, value, known in (
        ("kind", c.kind, kinds),
        ("learned", c.learned, ("ema", "gradient")),
        ("initial", c.initial, ("normal", "data", "kmeans")),
    ):
        if value not in known:
            raise unknown(f"codes.{name}", value, known)
    if c.kind == "fsq":
        if len(c.levels) != channels or min(c.levels, default=0) < 2:
            raise UserError(
                f"codes.levels={tuple(c.levels)}: fsq needs as many numbers as model.latent_channels={channels}, "
                "each at least 2"
            )
        return FiniteScalars(channels, math.prod(c.levels), 1, levels=tuple(c.levels))
    depth = 1 if c.kind == "vq" else c.depth
    if c.size < 2 or depth < 1 or not 0 <= c.decay < 1 or not 0 <= c.restart_below <= 1 or c.commitment < 0:
        raise UserError(
            f"codes.size={c.size}, depth={c.depth}, decay={c.decay}, restart_below={c.restart_below}, "
            f"commitment={c.commitment}: at least 2 codes, a depth of 1, a decay from 0 up to, but not, 1, restarts "
            "below a share of 0 to 1, and no negative weight"
        )
    if c.kind == "product" and channels % depth:
        raise UserError(f"codes.kind=product: depth={depth} does not divide model.latent_channels={channels}")
    if c.cosine and c.kind == "residual":
        raise UserError("codes.cosine compares directions, and what is left over has none: not with kind=residual")
    return VectorQuantizer(
        channels,
        c.size,
        depth,
        split=c.kind == "product",
        ema=c.learned == "ema",
        decay=c.decay,
        cosine=c.cosine,
        restart_below=c.restart_below,
        initial=c.initial,
    )


def _beside(x: Latents, context: Latents | None) -> Latents:
    return x if context is None else jnp.concatenate([x, context], axis=-1)
