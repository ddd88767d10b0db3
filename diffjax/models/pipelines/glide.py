"""GLIDE (Nichol et al. 2021): a model that reads the caption, and one that enlarges its pictures.

The stages are systems of their own (ddpm); a CLIP of noised images may guide the first in the place of classifier-free
guidance (section 2.4). A single stage with an `upsampler` that reads no text is a cascade (Ho et al. 2021b).
"""

import numpy as np

from diffjax.diffusion import sampling
from diffjax.errors import UserError
from diffjax.models.diffusion.guided import guided
from diffjax.models.pipelines import pipeline
from diffjax.models.pipelines.pipeline import ChainPlan, Part
from diffjax.typing import ImageSpec, System


def build(
    config,
    spec: ImageSpec,
    base: Part | None = None,
    upsampler: Part | None = None,
    upsampler_2: Part | None = None,
    noised_clip: Part | None = None,
) -> System:
    """The chain of trained stages. Raises UserError where one is missing or they do not fit."""
    if base is None:
        raise pipeline.missing("glide", "base", "glide_base")
    parts = {"base": base, "upsampler": upsampler, "upsampler_2": upsampler_2, "noised_clip": noised_clip}
    systems = {name: part[0] for name, part in parts.items() if part}
    upsamplers, gives = pipeline.upsamplers_of(systems, base[0].gives)
    if noised_clip:
        _check_guide(base[0], noised_clip[0])
    by_clip = guided(base[0], noised_clip=noised_clip[0]) if noised_clip else None
    make = pipeline.make_planner({name: part for name, part in parts.items() if name != "noised_clip"}, "base")

    def plan(sampler_config, capacity=None, **overrides) -> ChainPlan:
        """Whether CLIP guides is no traced input, as its gradient costs more than the rest."""
        made = make(sampler_config, capacity, **overrides)
        for name, stage in made.stages.items():
            if name != "base" and stage.scales["clip_scale"] != 0:
                scale = float(stage.scales["clip_scale"])
                raise UserError(f"clip_scale={name}:{scale:g}: noised_clip only guides base; leave out {name}:")
        clip_scale = float(made.stages["base"].scales["clip_scale"])
        if clip_scale and by_clip is None:
            raise pipeline.missing("glide, guided by clip_scale,", "noised_clip", "noised_clip")
        return made.replace(choices=(("by_clip", bool(clip_scale)),))

    def sample(variables, keys, condition, plan: ChainPlan):
        frozen, first = variables["frozen"], sampling.fold_in(keys, 2**16)
        if plan["by_clip"]:
            own = {"model": frozen["base"], "noised_clip": frozen["noised_clip"]}
            image = by_clip.sample(own, first, condition, plan.stages["base"])
        else:
            image = base[0].sample(frozen["base"], first, condition, plan.stages["base"])
        return pipeline.enlarge(upsamplers, variables, keys, pipeline.without_edits(condition), image, plan)

    return pipeline.make_chain(parts, plan, sample, pipeline.text_of(systems), gives=gives, classes=base[0].classes)


def _check_guide(base: System, clip: System) -> None:
    """Raises UserError for a CLIP of pictures that are not noised as those of `base`, or not of their size."""
    if clip.schedule is None:
        raise UserError("noised_clip knows no noised pictures: train one with configs/noised_clip.py")
    if clip.gives != base.gives:
        raise UserError(f"noised_clip is of {clip.gives}x{clip.gives}, and base draws {base.gives}x{base.gives}")
    theirs, ours = ([one.schedule(t) for t in np.linspace(1, one.schedule.timesteps, 5)] for one in (clip, base))
    if not np.allclose(theirs, ours):
        raise UserError("noised_clip and base were trained on different schedules: guidance needs one process")
