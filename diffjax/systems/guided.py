"""A diffusion system guided by other trained systems: systems in, a system out."""

import functools

from diffjax.systems.plan import draw
from diffjax.typing import System


def guided(system: System, *, classifier: System | None = None, weak: System | None = None) -> System:
    """`system`, sampled with a classifier's gradient or away from a weaker model, or both: see diffusion/guidance.py.

    Its variables are {"model": those of `system`, "classifier": ..., "weak": ...}. All were trained on one schedule.
    """

    def sample(variables, keys, condition, plan):
        return draw(
            system.model(variables["model"], condition),
            keys,
            plan,
            condition,
            classify=functools.partial(classifier.classify, variables["classifier"]) if classifier else None,
            weak=weak.model(variables["weak"], condition).denoiser if weak else None,
        )

    return system._replace(sample=sample, classes=max(system.classes, classifier.classes if classifier else 0))
