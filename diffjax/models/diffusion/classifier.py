"""Classifier of noised images, for classifier guidance of a diffusion model.

References:
  Dhariwal & Nichol 2021, "Diffusion models beat GANs on image synthesis" (ADM), section 4 and appendix H.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax import numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffjax.diffusion.noise import Noise
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.diffusion.random import split_each
from diffjax.diffusion.time_sampling import TimeSampler
from diffjax.errors import UserError
from diffjax.models.base import Classifier
from diffjax.models.diffusion.process import make_schedule, make_times, time_scale
from diffjax.models.images import to_unit_range
from diffjax.models.networks import apply, check_buildable, make_unet
from diffjax.nn.unet import UNet
from diffjax.typing import Aux, Batch, Images, ImageSpec, LossFn, PRNGKey, PRNGKeys, StepContext, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisedImageClassifier(Classifier):
    """A classifier of noised images.

    Attributes:
      image_shape: height, width and channels.
      half_unet: UNet without its second half, with pooling to logits.
      schedule: noise schedule of training.
      times: distribution of timesteps in training.
      time_scale: factor of the network's time input, as in the diffusion models.
    """

    image_shape: tuple[int, int, int]
    half_unet: UNet
    schedule: Schedule
    times: TimeSampler
    time_scale: float

    def init(self, key: PRNGKey) -> Variables:
        memory = self.times.init(self.schedule)
        params = self.half_unet.init(key, jnp.zeros((1, *self.image_shape)), jnp.zeros((1,)))["params"]
        return {"params": {"model": params}} | ({"times": memory} if memory else {})

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {"model": self.loss}

    def loss(
        self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext
    ) -> tuple[Float[Array, " B"], Aux]:
        """Returns the cross-entropy of the labels of images at random noise levels."""
        time_keys, eps_keys, dropout_keys = split_each(keys, 3)
        memory = variables.get("times", {})
        noised = NoisedBatch.sample(
            time_keys,
            eps_keys,
            to_unit_range(batch["image"]),
            schedule=self.schedule,
            time_sampler=self.times,
            state=memory,
        )
        logits = self._apply(variables, noised.x, noised.noise, dropout_keys=dropout_keys)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        memory = self.times.update(memory, noised.noise.t, jax.lax.stop_gradient(value))
        is_correct = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        return noised.loss_factor * value, Aux({"accuracy": is_correct}, {"times": memory} if memory else {})

    def classify(self, variables: Variables, x: Array, noise: Noise) -> Float[Array, "B K"]:
        return self._apply(variables, x, noise)

    def features(self, variables: Variables, images: Images) -> Float[Array, "B F"]:
        noise = self.schedule(jnp.float32(self.schedule.first))
        return self._apply(variables, noise.alpha * images, noise, return_features=True).mean((1, 2))

    def _apply(self, variables: Variables, x: Array, noise: Noise, **options: Any) -> Float[Array, "B ..."]:
        t = jnp.broadcast_to(self.time_scale * (jnp.ravel(noise.t) - 1.0), x.shape[:1])
        return apply(self.half_unet, variables["params"]["model"], x, t, **options)


def build(config: ConfigDict, spec: ImageSpec) -> NoisedImageClassifier:
    """Builds the classifier of `config` for images of `spec`.

    Raises:
      UserError: an unknown choice, or one that does not fit the images.
    """
    if not spec.classes:
        raise UserError("system=classifier: requires labels, which the data set does not have")
    if not config.model.get("pool"):
        raise UserError("model.pool='': must be attention or mean for system=classifier; set it")
    schedule = make_schedule(config.diffusion)
    model = NoisedImageClassifier(
        image_shape=(spec.size, spec.size, spec.channels),
        half_unet=make_unet(config, spec, out_channels=spec.classes, num_label_embeddings=0),
        schedule=schedule,
        times=make_times(config.diffusion, schedule),
        time_scale=time_scale(config.diffusion, schedule),
        classes=spec.classes,
    )
    check_buildable(model)
    return model
