"""A diffusion model that is distilled to a few steps by matching distributions: DMD2.

Reference: Yin et al. 2024b, "Improved distribution matching distillation for fast image synthesis".
"""

import dataclasses
from collections.abc import Mapping

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.diffusion import samplers, sampling, time_grids
from diffjax.diffusion.noise import for_examples, initial_std
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.diffusion.random import normal_each, split_each
from diffjax.errors import UserError
from diffjax.models.diffusion.condition_kinds import Values
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.networks import apply
from diffjax.nn.discriminator import FeatureDiscriminator
from diffjax.typing import Aux, Batch, LossFn, PRNGKey, PRNGKeys, StepContext, Variables

_GENERATOR_FOLD = 2**31 - 1  # folded into the key of a training step for the generator's step; no example has it


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionMatchingModel(DiffusionModel):
    """A generator of few steps, trained by distribution matching distillation. Samples are those of `DiffusionModel`.

    The generator is the group of parameters "model". The group "fake_score" has the denoiser of its samples, and the
    discriminator, which has the features of that denoiser, as in the paper: so it has all conditions of the network and
    works in any data space. Both groups start as the teacher. The paper updates the fake score in every step and the
    generator in each fifth (two time scales): `train.model.update_every`.

    Attributes:
      discriminator: (features of the network) -> logits; with `gan_weight` = 0 it has no parameters.
    """

    discriminator: FeatureDiscriminator = dataclasses.field(default_factory=FeatureDiscriminator)

    training_only = ("fake_score",)

    def init(self, key: PRNGKey) -> Variables:
        key, discriminator_key, example_key = jax.random.split(key, 3)
        variables = super().init(key)
        params = variables["params"]["model"]
        fake_score = jax.tree.map(jnp.copy, params)
        if self.process.matching.gan_weight:
            x, t, inputs = self.example_arguments(params.get("conditions", {}), example_key)
            shape = jax.eval_shape(lambda: apply(self.network, params, x, t, **inputs, return_features=True))
            features = jnp.zeros(shape.shape, shape.dtype)
            fake_score["discriminator"] = self.discriminator.init(discriminator_key, features)["params"]
        return {**variables, "params": {"model": params, "fake_score": fake_score}}

    def prepare(self, variables: Variables, batch: Batch) -> Variables:
        prepared = super().prepare(variables, batch)
        params = prepared["params"]
        return {**prepared, "params": {**params, "fake_score": {**params["fake_score"], **params["model"]}}}

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {"model": self.generator_loss, "fake_score": self.fake_score_loss}

    def generator_loss(
        self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext
    ) -> tuple[Float[Array, " B"], Aux]:
        """Returns the loss of distribution matching, plus the weighted adversarial loss."""
        matching = self.process.matching
        _, values, samples, (loss_keys, *_, logit_keys) = self._examples_and_samples(variables, batch, keys, context)
        fake = self.process.predictor(self._bound_network(_fake_score(variables), values))
        loss = matching.matching_loss(
            loss_keys, samples, self._bound_teacher(variables, values), lambda x, now: fake(x, now).x0(x)
        )
        if not matching.gan_weight:
            return loss, Aux({})
        adversarial = jax.nn.softplus(-self._logits(variables, values, logit_keys, samples))
        return loss + matching.gan_weight * adversarial, Aux({"matching": loss, "adversarial": adversarial})

    def fake_score_loss(
        self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext
    ) -> tuple[Float[Array, " B"], Aux]:
        """Returns the loss of denoising the generator's samples, plus the weighted loss of the discriminator."""
        matching, process = self.process.matching, self.process
        # The same samples as in the generator's loss.
        x_0, values, samples, loss_keys = self._examples_and_samples(variables, batch, keys, context)
        _, time_keys, eps_keys, dropout_keys, real_keys, fake_keys = loss_keys
        samples = lax.stop_gradient(samples)
        noised = NoisedBatch.sample(
            time_keys, eps_keys, samples, schedule=process.schedule, time_sampler=process.times, state={}
        )
        predict = process.predictor(self._bound_network(_fake_score(variables), values, dropout_keys))
        loss = matching.denoising_loss(noised, predict(noised.x, noised.noise))
        if not matching.gan_weight:
            return loss, Aux({})
        on_real, on_fake = (
            self._logits(variables, values, *arguments) for arguments in ((real_keys, x_0), (fake_keys, samples))
        )
        discriminator_loss = jax.nn.softplus(-on_real) + jax.nn.softplus(on_fake)
        metrics = {"denoising": loss, "discriminator": discriminator_loss}
        return loss + matching.discriminator_weight * discriminator_loss, Aux(metrics)

    def generate(
        self, variables: Variables, keys: PRNGKeys, values: Mapping[str, Values], context: StepContext
    ) -> Array:
        """Samples x_0 of the generator, at a random step of its sampler, which is the same for the batch.

        The input of the step is the generator's own sample (backward simulation), by the sampler `lcm` on the grid
        `trailing`. A gradient passes through the last evaluation alone.

        Args:
          keys: [B]; consumed.
          values: values of the conditions.
          context: context of the training step, whose key the step depends on.

        Reference: Yin et al. 2024b, sec. 4.4 and 4.5.
        """
        schedule, steps = self.process.schedule, self.process.matching.generator_steps
        levels = schedule(jnp.asarray(time_grids.trailing(steps, schedule), jnp.float32))
        first_keys, keys = split_each(keys)
        x = initial_std(sampling.at(levels, 0)) * normal_each(first_keys, self.data_space.shape)
        index = jnp.zeros((), jnp.int32)
        if steps > 1:
            index = jax.random.randint(jax.random.fold_in(context.key, _GENERATOR_FOLD), (), 0, steps)
            frozen = {**variables, "params": lax.stop_gradient(variables["params"])}
            denoiser = self.process.denoiser(self._bound_network(frozen, values))
            x = sampling.run(keys, denoiser, samplers.lcm(), levels, index, x)
        predict = self.process.predictor(self._bound_network(variables, values))
        return predict(x, sampling.at(levels, index)).x0(x)

    def _examples_and_samples(
        self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext
    ) -> tuple[Array, dict[str, Values], Array, tuple[PRNGKeys, ...]]:
        """Returns the clean data, the values of conditions, samples with the same conditions, and other keys."""
        condition_keys, sample_keys, *others = split_each(keys, 8)
        x_0, values, _ = self._examples(variables, batch, condition_keys)
        return x_0, values, self.generate(variables, sample_keys, values, context), tuple(others)

    def _logits(
        self, variables: Variables, values: Mapping[str, Values], keys: PRNGKeys, x_0: Array
    ) -> Float[Array, " B"]:
        """Returns the discriminator's logits of clean data, noised to random levels."""
        x, now = self.process.matching.noise(keys, x_0)
        network = self._bound_network(_fake_score(variables), values, return_features=True)
        c = self.process.coefficients(now)
        features = network(for_examples(c.input, x) * x, c.time)
        return apply(self.discriminator, variables["params"]["fake_score"]["discriminator"], features)


def check(model: DistributionMatchingModel) -> None:
    """Raises UserError for options of a model that distribution matching does not have."""
    if model.last_step is not None:
        raise UserError("last_step: is not supported for diffusion.loss=distribution_matching; set it to ''")
    if model.crop:
        raise UserError(
            f"diffusion.crop={model.crop}: is not supported for diffusion.loss=distribution_matching; set it to 0"
        )
    if model.nonleaky_augmentation:
        raise UserError("data.augment.prob: is not supported for diffusion.loss=distribution_matching; set it to 0")


def _fake_score(variables: Variables) -> Variables:
    """Returns variables with the fake score in the place of the generator."""
    return {**variables, "params": {"model": variables["params"]["fake_score"]}}
