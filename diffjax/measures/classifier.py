"""What is measured of classifiers of noised images."""

import jax
import numpy as np
from jax import numpy as jnp

from diffjax.diffusion import sampling
from diffjax.diffusion.noise import perturb
from diffjax.measures.settings import Settings, mean_and_error, over_images
from diffjax.systems.pixels import to_unit_range
from diffjax.systems.process import make_schedule
from diffjax.workdir import Run


def accuracy(settings: Settings, trained: Run, images: np.ndarray, labels: np.ndarray) -> dict:
    """How often a classifier is right, from the clean end of the process to the noisy one."""
    schedule = make_schedule(trained.config.diffusion)

    @jax.jit
    def right(variables, keys, label, x0, t):
        noise = schedule(t)
        x = perturb(x0, sampling.noise_of(keys, x0.shape[1:]), noise)
        return jnp.argmax(trained.system.classify(variables, x, noise), axis=-1) == label

    rows = []
    for t in np.unique(np.round(np.linspace(schedule.first, schedule.timesteps, 9))):
        hits = over_images(
            settings,
            f"t = {t:g}",
            lambda keys, image, label, t=t: right(trained.variables, keys, label, to_unit_range(image), t),
            images,
            labels,
        )
        rows.append({"t": float(t), "accuracy": mean_and_error(hits)})
    print(f"accuracy on {len(images)} images of {settings.split}, checkpoint {trained.step}")
    for row in rows:
        print(f"  t {row['t']:6g}  {row['accuracy']['mean']:6.1%} +- {row['accuracy']['standard_error']:.1%}")
    return {"rows": rows}
