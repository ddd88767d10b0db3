"""unCLIP's diffusion prior: from a caption to the CLIP embedding of a picture (Ramesh et al. 2022, section 2.2)."""

from diffjax.errors import UserError, checked_number
from diffjax.models.abstract import described
from diffjax.models.diffusion import data_space
from diffjax.models.diffusion.conditioning import make_conditions
from diffjax.models.diffusion.conditions import ClipText
from diffjax.models.diffusion.model import make_system
from diffjax.models.diffusion.process import Process
from diffjax.models.networks import dtype_of, make
from diffjax.nn.prior_transformer import PriorTransformer
from diffjax.typing import ImageSpec, System, Variables


def build(config, spec: ImageSpec, clip: tuple[System, Variables] | None = None) -> System:
    """The prior of `config` over the embeddings of `clip`. Raises UserError for what does not exist or does not fit."""
    if clip is None:
        raise UserError("system=unclip_prior is over the embeddings of a trained CLIP: set --config.clip=WORKDIR")
    process = Process.from_config(config.diffusion)
    if process.learns_variance:
        raise UserError("system=unclip_prior learns no variance: set diffusion.variance to fixed_small or fixed_large")
    known = described(clip[0].clip, clip[1])
    scale = checked_number("diffusion.embedding_scale", config.diffusion.embedding_scale, low=0, open_at="low")
    space = data_space.embeddings(clip[0], known.dimensions, scale)
    conditions = make_conditions(config, spec, space, known, masked=True)
    if any(not isinstance(one, ClipText) for one in conditions.each.values()):
        raise UserError("system=unclip_prior is told a caption as CLIP reads it: conditions has clip_text alone")
    network = make(PriorTransformer, config.model, "model", dtype=dtype_of(config))
    return make_system(config, spec, process, space, conditions, network, {"clip": clip})
