"""What is measured of classifiers of noised images."""

import jax
import numpy as np
from jax import numpy as jnp

from diffjax.diffusion import sampling
from diffjax.diffusion.noise import perturb
from diffjax.evaluation.settings import Examples, Settings, over, percent_with_error, share_and_error
from diffjax.models.diffusion.process import make_schedule
from diffjax.models.pixels import to_unit_range
from diffjax.runs.loading import Run


def accuracy(settings: Settings, trained: Run, examples: Examples) -> dict:
    """How often a classifier is right, from the clean end of the process to the noisy one."""
    schedule = make_schedule(trained.config.diffusion)

    @jax.jit
    def right(variables, keys, batch, t):
        noise, x0 = schedule(t), to_unit_range(batch["image"])
        x = perturb(x0, sampling.noise_of(keys, x0.shape[1:]), noise)
        return jnp.argmax(trained.system.classify(variables, x, noise), axis=-1) == batch["label"]

    rows = []
    for t in np.unique(np.round(np.linspace(schedule.first, schedule.timesteps, 9))):
        hits = over(settings, f"t = {t:g}", lambda keys, batch, t=t: right(trained.variables, keys, batch, t), examples)
        rows.append({"t": float(t), "accuracy": share_and_error(hits)})
    print(f"accuracy on {len(examples.images)} images of {settings.split}, checkpoint {trained.step}")
    for row in rows:
        print(f"  t {row['t']:6g}  {percent_with_error(**row['accuracy'])}")
    return {"rows": rows}
