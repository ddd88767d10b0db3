"""VQ-VAE (van den Oord et al. 2017); VQ-VAE-2 (Razavi et al. 2019) and VQGAN (Esser et al. 2021) by their configs."""

import math

import jax
from jax import numpy as jnp

from diffjax.diffusion.sampling import split
from diffjax.errors import UserError, checked_whole, unknown
from diffjax.latents import codebook, statistics
from diffjax.latents.quantizers import FiniteScalars, Quantizer, VectorQuantizer
from diffjax.models.autoencoders.encoder_decoder import Params
from diffjax.models.autoencoders.multiscale import Levels
from diffjax.models.autoencoders.objective import Attempt, make_objective
from diffjax.models.pixels import to_unit_range
from diffjax.typing import Codec, ImageSpec, System

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
            measured = {"commitment": one.commitment, **measured}
            metrics |= {key + suffix(name): value for key, value in measured.items()}
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

    def summarize(variables):
        """Returns the usage of each codebook, which is that of all latents and not a mean over examples."""
        found = {name: codebook.usage(variables["codes"][name]["seen"]) for name in names}
        return {key + suffix(name): value for name, usage in found.items() for key, value in usage.items()}

    def suffix(name):
        return f"_{name}" if len(names) > 1 else ""

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

    def likelihood(variables, keys, batch, samples):
        """The ELBO with codes equally likely, and its terms: van den Oord et al. 2017, sec. 3.2."""
        params, x = variables["params"]["model"], to_unit_range(batch["image"])
        _, _, latent = levels.encode(params, variables["codes"], x)
        nll = coder.likelihood.nll(x, coder.decode(params, latent, x))
        codes = sum(math.prod(grid) for grid in levels.grids) * quantizer.depth
        kl = jnp.full_like(nll, codes * math.log(quantizer.vocabulary) / math.prod(coder.shape))
        return {name: nats / math.log(2) for name, nats in {"elbo": nll + kl, "nll": nll, "kl": kl}.items()}

    others = {"prepare": prepare if settings.initial != "normal" else None, "warn": warn, "summarize": summarize}
    objective = make_objective(config, spec, coder, init, attempt, **others)
    return System(
        objective,
        classes=0,
        codec=codec if coder.pixelcnn is None else None,
        likelihood=likelihood if coder.likelihood.exact else None,
        frozen=frozen,
    )


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
    checked_whole("model.latent_channels", channels)
    if c.kind == "fsq":
        for level in c.levels:
            checked_whole("codes.levels", level, low=2)
        if len(c.levels) != channels or min(c.levels, default=0) < 2:
            raise UserError(
                f"codes.levels={tuple(c.levels)}: fsq needs as many numbers as model.latent_channels={channels}, "
                "each at least 2"
            )
        return FiniteScalars(channels, math.prod(c.levels), 1, levels=tuple(c.levels))
    checked_whole("codes.size", c.size, low=2)
    checked_whole("codes.depth", c.depth)
    depth = c.depth
    if c.kind == "vq" and depth > 1:
        raise UserError(f"codes.depth={depth}: must be 1 for codes.kind=vq; set codes.kind=residual or product")
    if not 0 <= c.decay < 1 or not 0 <= c.restart_below <= 1 or not 0 <= c.commitment < math.inf:
        raise UserError(
            f"codes.decay={c.decay}, restart_below={c.restart_below}, commitment={c.commitment}: a decay from 0 up to, "
            "but not, 1, restarts below a share of 0 to 1, and a finite weight from 0"
        )
    if c.kind == "product" and channels % depth:
        raise UserError(f"codes.kind=product: depth={depth} does not divide model.latent_channels={channels}")
    if c.get("shared", False) and c.kind != "residual":
        raise UserError(f"codes.shared=True: is only supported for codes.kind=residual, not {c.kind}; set it to False")
    if c.cosine and c.kind == "residual":
        raise UserError("codes.cosine compares directions, and what is left over has none: not with kind=residual")
    return VectorQuantizer(
        channels,
        c.size,
        depth,
        split=c.kind == "product",
        shared=c.get("shared", False),
        ema=c.learned == "ema",
        decay=c.decay,
        cosine=c.cosine,
        restart_below=c.restart_below,
        initial=c.initial,
    )
