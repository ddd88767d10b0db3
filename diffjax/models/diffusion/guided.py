"""A diffusion system guided by other trained systems: systems in, a system out."""

import functools

from diffjax.diffusion import sampling
from diffjax.models.diffusion.sampling_settings import draw
from diffjax.typing import System


def guided(
    system: System, *, classifier: System | None = None, weak: System | None = None, noised_clip: System | None = None
) -> System:
    """`system`, sampled with the gradient of a classifier or a CLIP of noised images, or away from a weaker model.

    Or all of them: see diffusion/guidance.py. Its variables are {"model": those of `system`, "classifier": ...,
    "weak": ..., "noised_clip": ...}. All were trained on one schedule.
    """

    def sample(variables, keys, condition, plan):
        similar, told_keys = None, sampling.fold_in(keys, 2**31 - 1)  # no step is folded in as that
        if noised_clip:
            clip = noised_clip.clip(variables["noised_clip"])
            similar = clip.embed_noised, clip.embed_texts(condition["tokens"])
        level = plan.scales["augmentation"]
        return draw(
            system.model(variables["model"], condition, told_keys, level),
            keys,
            plan,
            condition,
            classify=functools.partial(classifier.classify, variables["classifier"]) if classifier else None,
            weak=weak.model(variables["weak"], condition, told_keys, level).denoiser if weak else None,
            similar=similar,
        )

    return system._replace(sample=sample, classes=max(system.classes, classifier.classes if classifier else 0))
