"""DALL-E 2, unCLIP (Ramesh et al. 2022): a prior from the caption to a CLIP embedding, a decoder to a picture of it.

And upsamplers. Two priors are known, one autoregressive over the codes of the embedding's principal components and one
of diffusion; without any, the caption's own embedding is decoded (section 5.1).
"""

from jax import numpy as jnp

from diffjax.diffusion import sampling
from diffjax.errors import UserError, unknown
from diffjax.models.abstract import described
from diffjax.models.diffusion.sampling_settings import encode
from diffjax.models.pipelines import pca, pipeline
from diffjax.models.pipelines.pipeline import ChainPlan, Part
from diffjax.typing import ImageSpec, Manipulations, System

_PRIORS = {"diffusion": "prior", "ar": "ar_prior", "none": None}  # the stage of each
# candidates: embeddings that the prior draws, of which the one nearest to the caption's is taken (section 2.2)
_CHOICES = {"prior": "diffusion", "candidates": 2}


def build(
    config,
    spec: ImageSpec,
    clip: Part | None = None,
    decoder: Part | None = None,
    prior: Part | None = None,
    ar_prior: Part | None = None,
    pca: Part | None = None,
    upsampler: Part | None = None,
    upsampler_2: Part | None = None,
) -> System:
    """The chain of trained stages. Raises UserError where one is missing or they do not fit."""
    for name, part, file in (("clip", clip, "clip_shapes"), ("decoder", decoder, "unclip_decoder")):
        if part is None:
            raise pipeline.missing("unclip", name, file)
    parts = {"clip": clip, "decoder": decoder, "prior": prior, "ar_prior": ar_prior, "pca": pca}
    parts |= {"upsampler": upsampler, "upsampler_2": upsampler_2}
    systems = {name: part[0] for name, part in parts.items() if part}
    upsamplers, gives = pipeline.upsamplers_of(systems, decoder[0].gives)
    about = described(clip[0].clip, clip[1])
    _check_embeddings(systems, about.dimensions)
    text = pipeline.text_of(systems)
    make = pipeline.make_planner(
        {name: part for name, part in parts.items() if name not in ("clip", "pca")},
        "decoder",
        _CHOICES,
        lambda name, chosen: name in _PRIORS.values() and name != _PRIORS[chosen["prior"]],
    )

    def plan(sampler_config, capacity=None, **overrides) -> ChainPlan:
        chosen = overrides.get("prior", sampler_config.get("prior", _CHOICES["prior"]))
        if chosen not in _PRIORS:
            raise unknown("prior", chosen, _PRIORS)
        if _PRIORS[chosen] not in (None, *systems):
            raise pipeline.missing(f"unclip with prior={chosen}", _PRIORS[chosen], f"unclip_{_PRIORS[chosen]}")
        made = make(sampler_config, capacity, **overrides)
        if made["candidates"] < 1:
            raise UserError(f"candidates={made['candidates']}: the prior draws at least one embedding")
        return made

    def clip_of(variables):
        return clip[0].clip(variables["frozen"]["clip"])

    def embedding(variables, keys, condition, plan):
        """Of the picture to be drawn."""
        if "image_embedding" in condition:
            return condition["image_embedding"]
        if "original" in condition:
            return clip_of(variables).embed_images(condition["original"])
        towards = clip_of(variables).embed_texts(condition["tokens"])
        stage = _PRIORS[plan["prior"]]
        if stage is None:
            return towards
        asked = pipeline.only(condition, "tokens")
        drawn = jnp.stack(
            [
                systems[stage].sample(variables["frozen"][stage], sampling.fold_in(keys, k), asked, plan.stages[stage])
                for k in range(plan["candidates"])
            ],
            axis=1,
        )
        best = jnp.argmax(jnp.einsum("bkd,bd->bk", drawn, towards), axis=1)
        return jnp.take_along_axis(drawn, best[:, None, None], axis=1)[:, 0]

    def sample(variables, keys, condition, plan: ChainPlan):
        prior_keys, decoder_keys = sampling.split(sampling.fold_in(keys, 2**16))
        told = pipeline.only(condition, "tokens", "latent", "image", "mask")
        told["image_embedding"] = embedding(variables, prior_keys, condition, plan)
        image = decoder[0].sample(variables["frozen"]["decoder"], decoder_keys, told, plan.stages["decoder"])
        return pipeline.enlarge(upsamplers, variables, keys, pipeline.without_edits(condition), image, plan)

    def invert(variables, images, condition, plan: ChainPlan):
        return encode(decoder[0].model(variables["frozen"]["decoder"], condition), images, plan.stages["decoder"])

    manipulate = Manipulations(
        embed=lambda variables, images: clip_of(variables).embed_images(images),
        embed_texts=lambda variables, tokens: clip_of(variables).embed_texts(tokens),
        invert=invert,
        project=_project if pca else None,
    )
    return pipeline.make_chain(parts, plan, sample, text, gives=gives, manipulate=manipulate)


def _project(variables, embeddings, count):
    return pca.projected(variables["frozen"]["pca"]["seen"], embeddings, count)


def _check_embeddings(systems: dict[str, System], dimensions: int) -> None:
    """Raises UserError where a stage is of embeddings of another size than the CLIP's."""
    if "image_embedding" not in systems["decoder"].takes:
        raise UserError("decoder is told no CLIP embedding: its config has no conditions.image_embedding")
    sizes = {"decoder": systems["decoder"].takes["image_embedding"]}
    sizes |= {name: systems[name].gives for name in ("prior", "ar_prior", "pca") if name in systems}
    for name, size in sizes.items():
        if size != dimensions:
            raise UserError(
                f"{name} is of embeddings of {size} values, and clip makes {dimensions}: train both on one CLIP"
            )
