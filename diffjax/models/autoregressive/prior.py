"""Priors over the codes of a trained autoencoder, drawn code after code; DALL-E is one that reads captions.

A gated PixelCNN over one level (VQ-VAE: van den Oord et al. 2017, sec. 4.2), or a causal transformer over all levels,
the coarsest first (in the place of VQ-VAE-2's PixelSNAILs: Razavi et al. 2019, sec. 3.2), or over a caption and then
the codes (DALL-E: Ramesh et al. 2021); over the codes of a CLIP embedding it is unCLIP's autoregressive prior (Ramesh
et al. 2022, sec. 2.2). Codes are made of the images in the training step, by the codec, which is not trained further.
"""

import functools
import math

import flax.struct
import jax
from jax import numpy as jnp
from jaxtyping import Array

from diffjax.diffusion import sampling
from diffjax.errors import UserError, checked_whole, unknown
from diffjax.latents import token_sampling as of_logits
from diffjax.models.abstract import described
from diffjax.models.autoregressive.prefix import Caption, ClipCaption, Embedding, Label, Nothing, Prefix, Told, Values
from diffjax.models.autoregressive.token_models import MODELS, Pick
from diffjax.models.networks import check_buildable, checked_share, text_of
from diffjax.models.pixels import to_unit_range
from diffjax.models.settings import make_settings
from diffjax.typing import Aux, Codec, ImageSpec, Objective, System, TextSpec, Variables

# top_k 0, top_p 1: all codes; guidance 1: none; kept: share of an image, from the top, whose codes are not drawn
_SETTINGS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0, "kept": 0.0}
_CONDITIONS = ("none", "label", "text", "clip", "clip_caption")


@flax.struct.dataclass
class Drawing:
    """How codes are drawn. Leaves are traced inputs; drawings of equal static fields share a compilation."""

    settings: dict[str, Array]  # of latents/token_sampling.py
    guidance: Array
    guided: bool = flax.struct.field(pytree_node=False)
    rows: int = flax.struct.field(pytree_node=False)


def build(
    config,
    spec: ImageSpec,
    codec: tuple[System, Variables] | None = None,
    clip: tuple[System, Variables] | None = None,
) -> System:
    """The prior of `config` over the codes of `codec`, told what `clip` makes of captions if the config says so.

    Raises UserError for what does not exist or does not fit.
    """
    if codec is None:
        raise UserError("system=prior is over the codes of a trained autoencoder: set --config.codec=WORKDIR")
    autoencoder, frozen = codec[0], {"codec": codec[1]}
    about = described(autoencoder.codec, frozen["codec"])
    if not about.grids:
        raise UserError(f"codec={config.codec} has no codes (a Gaussian latent): a prior needs vqvae or dvae")
    told, text = _condition(config, spec, clip, embeds=autoencoder.embeds)
    if isinstance(told, Embedding | ClipCaption):
        frozen["clip"] = clip[1]
    if config.model.architecture not in MODELS:
        raise unknown("model.architecture", config.model.architecture, MODELS)
    model = MODELS[config.model.architecture].from_config(config, about, told)
    dropout = checked_share("model.condition_dropout", config.model.condition_dropout)
    text_weight = config.get("loss", {}).get("text_weight", 0.0)
    if not 0 <= text_weight < 1:
        raise UserError(f"loss.text_weight={text_weight:g}: a share from 0 up to, but not, 1; the codes have the rest")
    checked_whole("rerank.best_of", config.get("rerank", {}).get("best_of", 1))
    values_of_image = math.prod(about.shape) if autoencoder.embeds else spec.size**2 * spec.channels
    bits = 1 / math.log(2)

    def init(key):
        return {"params": {"model": model.init(key)}}

    def codec_of(variables) -> Codec:
        return autoencoder.codec(variables["frozen"]["codec"])

    def to_codes(variables, images):
        return codec_of(variables).to_codes(images)

    def values(variables, batch, keys) -> Values:
        bound = clip[0].clip(variables["frozen"]["clip"]) if "clip" in frozen else None
        return told.of(Told(batch, keys, codec_of(variables), bound))

    def nats(variables, batch, values, dropout_keys=None):
        codes = to_codes(variables, to_unit_range(batch["image"]))
        return model.nll(variables["params"]["model"], codes, values, dropout_keys)

    def figures(found) -> dict[str, Array]:
        own = {"bits_per_code": bits * found["codes"].mean(axis=-1)}
        return own | ({"bits_per_token": bits * found["text"].mean(axis=-1)} if "text" in found else {})

    def loss(variables, batch, keys, moment):
        drop_keys, dropout_keys = sampling.split(keys)
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, dropout))(drop_keys)
        found = nats(variables, batch, told.drop(values(variables, batch, keys), dropped), dropout_keys)
        value = found["codes"].mean(axis=-1)
        metrics = figures(found) | {"bits_per_dim": bits * found["codes"].sum(axis=-1) / values_of_image}
        if "text" in found:  # each kind by its mean: section 2.2
            value = (1 - text_weight) * value + text_weight * found["text"].mean(axis=-1)
        return value, Aux(metrics)

    def likelihood(variables, keys, batch, samples):
        found = nats(variables, batch, values(variables, batch, keys))
        return {"codes": bits * found["codes"].sum(axis=-1) / values_of_image} | figures(found)

    def sample(variables, keys, condition, drawing: Drawing):
        asked = values(variables, condition, sampling.fold_in(keys, 2**31 - 1))  # no position is folded in as that
        known = jnp.zeros((len(keys), 0), jnp.int32)
        if drawing.rows:
            codes = to_codes(variables, condition["image"])[0]
            known = codes[:, : drawing.rows].reshape(len(keys), -1)
        pick = jax.vmap(functools.partial(of_logits.draw, **drawing.settings))
        if drawing.guided:
            asked = jax.tree.map(lambda *both: jnp.concatenate(both), asked, told.withheld(asked))
            known = jnp.concatenate([known, known])
            pick = _guided(pick, drawing.guidance)
        codes = model.draw(variables["params"]["model"], keys, asked, pick, known)
        codes = tuple(level[: len(keys)] for level in codes)
        return codec_of(variables).from_codes(codes)

    def plan(sampler_config, **overrides) -> Drawing:
        made = make_settings("prior", _SETTINGS, sampler_config, **overrides)
        kept, guidance = float(made.pop("kept")), made.pop("guidance")
        if not (made["temperature"] > 0 and made["top_k"] >= 0 and 0 < made["top_p"] <= 1):
            raise UserError(
                f"temperature={made['temperature']:g}, top_k={made['top_k']}, top_p={made['top_p']:g}: a temperature "
                "above 0 (top_k=1 is greedy), a top_k from 0, a top_p above 0 and up to 1"
            )
        guided = bool(guidance != 1.0)
        if guided and not dropout:
            raise UserError(
                f"sampler.guidance={guidance:g} needs a prior trained with model.condition_dropout > 0, which this one "
                "was not: leave it at 1"
            )
        height = about.grids[0][0]
        rows = round(kept * height)
        if kept and (autoencoder.embeds or len(about.grids) > 1 or not 0 < rows < height):
            raise UserError(
                f"kept={kept:g}: an image is completed from its first 1 to {height - 1} of {height} rows of codes, of "
                "one level"
            )
        return Drawing(made, guidance, guided, rows)

    plan(config.sampler)
    check_buildable(init)
    classes = told.classes if isinstance(told, Label) else 0
    return System(
        Objective(init, {"model": loss}),
        classes,
        plan,
        sample,
        likelihood=likelihood,
        text=text,
        frozen=frozen,
        gives=autoencoder.gives if autoencoder.embeds else spec.size,
        embeds=autoencoder.embeds,
    )


def _condition(config, spec: ImageSpec, clip, *, embeds: bool) -> tuple[Prefix, TextSpec | None]:
    """What `config.model.condition` names, and the text that it reads. `embeds`: the codes are of embeddings."""
    name = config.model.condition
    if name not in _CONDITIONS:
        raise unknown("model.condition", name, _CONDITIONS)
    if name == "none" and config.model.condition_dropout:
        raise UserError("model.condition_dropout withholds a condition, and model.condition is none: set it to 0")
    if name == "label":
        if not spec.classes:
            raise UserError("model.condition=label, but the data set has no labels: choose none")
        return Label(spec.classes), None
    if name == "text":
        text = text_of(config)
        return Caption(text), text
    if name in ("clip", "clip_caption"):
        if clip is None:
            raise UserError(f"model.condition={name} is of a trained CLIP: set --config.clip=WORKDIR")
        known = described(clip[0].clip, clip[1])
        if name == "clip":
            return Embedding(known.dimensions), known.text
        if not embeds:
            raise UserError("model.condition=clip_caption is of priors over CLIP embeddings, whose codec is system=pca")
        return ClipCaption(known.text, known.dimensions, known.width), known.text
    return Nothing(), None


def _guided(pick: Pick, scale: Array) -> Pick:
    """Classifier-free guidance on logits: the second half's are of the condition withheld."""

    def both(keys, logits):
        conditional, unconditional = jnp.split(logits, 2)
        drawn = pick(keys, unconditional + scale * (conditional - unconditional))
        return jnp.concatenate([drawn, drawn])

    return both
