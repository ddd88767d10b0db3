"""Diffusion model: a process, a data space, conditions and a network. variants.py builds each kind from a config."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import jax
import numpy as np
from flax import linen as nn
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.diffusion import time_grids
from diffjax.diffusion.couplings import Examples, Pairs
from diffjax.diffusion.denoiser import Denoiser, Network
from diffjax.diffusion.flow_map_losses import Guidance
from diffjax.diffusion.noise import Noise, for_examples, initial_std
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.random import fold_in_each, split_each
from diffjax.errors import UserError
from diffjax.models import networks
from diffjax.models.base import ContrastiveModel, GenerativeModel
from diffjax.models.condition_inputs import ConditionInputs
from diffjax.models.diffusion import perturbations
from diffjax.models.diffusion.bound_model import BoundModel
from diffjax.models.diffusion.condition_kinds import Params, Values
from diffjax.models.diffusion.conditions import Conditions
from diffjax.models.diffusion.data_space import DataSpace, PixelSpace
from diffjax.models.diffusion.diffusion_settings import OptimizedGrids, make_diffusion_settings
from diffjax.models.diffusion.nonleaky_augmentation import NonLeakyAugmentation
from diffjax.models.diffusion.process import Process
from diffjax.models.diffusion.representation_alignment import Alignment
from diffjax.models.images import to_unit_range
from diffjax.models.networks import apply
from diffjax.models.observation import Observer
from diffjax.models.parameter_paths import flatten, unflatten
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.nn.dit import DiT
from diffjax.nn.edm2 import normalize_kernels
from diffjax.nn.layers import timestep_embedding
from diffjax.nn.unet import UNet
from diffjax.nn.uvit import UViT
from diffjax.registry import lookup
from diffjax.typing import Aux, Batch, Clip, Images, ImageSpec, LossFn, PRNGKey, PRNGKeys, StepContext, Variables

_INTERVAL_WIDTH = 64  # values of the embedding of the interval of a flow map's step
_CONDITIONS_FOLD = 2**31 - 1  # folded into sample keys for the conditions; no step of a sampler has this number


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionModel(GenerativeModel):
    """A diffusion model.

    Attributes:
      image_spec: size and channels of images, before `data_space`.
      process: noise schedule, parameterization, and loss.
      data_space: pixels, latents or embeddings.
      conditions: conditioning inputs.
      network: (x_t, t, **network inputs) -> output; x_t with the channels of conditions.
      contrastive: frozen CLIP of conditions; None: no condition uses one.
      crop: height and width of training crops of the data; 0: no crops.
      nonleaky_augmentation: augmentation of training images; None: off.
      optimized_grids: time grids that were optimised for this model, the choice grid=optimized.
      last_step: another model of the same data for the last step of sampling, whose variables are
        variables["frozen"]["last_step"]; None: this one.
      teacher: model of the same data and conditions that training distils, whose variables are
        variables["frozen"]["teacher"]; None: training from data.
      teacher_guidance: scale of classifier-free guidance of the teacher; 1: none.
      alignment: alignment of the network's tokens with features of an image encoder, whose variables are
        variables["frozen"]["alignment"]; None: none.
    """

    image_spec: ImageSpec
    process: Process
    data_space: DataSpace
    conditions: Conditions
    network: nn.Module
    contrastive: ContrastiveModel | None = None
    crop: int = 0
    nonleaky_augmentation: NonLeakyAugmentation | None = None
    optimized_grids: OptimizedGrids = ()
    last_step: "DiffusionModel | None" = None
    teacher: "DiffusionModel | None" = None
    teacher_guidance: float = 1.0
    alignment: Alignment | None = None

    @property
    def noise_schedule(self) -> Schedule:
        """Noise schedule of the process."""
        return self.process.schedule

    # Training

    def init(self, key: PRNGKey) -> Variables:
        network_key, conditions_key, example_key = jax.random.split(key, 3)
        condition_params = self.conditions.init(conditions_key)
        x, t, inputs = self.example_arguments(condition_params, example_key)
        params = networks.init(self.network, network_key, x, t, **inputs)
        params = {**params, **self.process.init()}
        if condition_params:
            params["conditions"] = condition_params
        if self.alignment:
            params["alignment"] = self.alignment.init(jax.random.fold_in(key, 3), cast(DiT | UViT, self.network).width)
        memory = self.process.times.init(self.process.schedule)
        variables = {"params": {"model": params}, **self.data_space.init()}
        return variables | ({"times": memory} if memory else {})

    def example_arguments(self, condition_params: Params, key: PRNGKey) -> tuple[Array, Array, dict[str, Any]]:
        """Returns zeros of the shapes of the network's arguments: x_t, t and inputs by name."""
        inputs: dict[str, Any] = self._example_inputs(condition_params, key)
        channels = inputs.pop("channels").shape[-1] if "channels" in inputs else 0
        if self.process.needs.interval:
            inputs = _with_interval(inputs, jnp.zeros((1,)))
        *sides, data_channels = self.data_space.shape
        return jnp.zeros((1, *sides, data_channels + channels)), jnp.zeros((1,)), inputs

    def noised_arguments(self, params: Params, key: PRNGKey, count: int) -> tuple[Array, Array, dict[str, Any]]:
        """Returns arguments of the network for Gaussian data of unit variance, at levels that cover the process.

        Channels of conditions are Gaussian too, and the other inputs are zeros.

        Args:
          params: parameters of the network, the process and the conditions.
          key: random key of the noised data.
          count: number of levels, evenly spaced in time, and of examples.
        """
        x, _, inputs = self.example_arguments(params.get("conditions", {}), key)
        inputs = {name: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])) for name, leaf in inputs.items()}
        process = self.process.bind(params)
        levels = process.schedule(jnp.linspace(process.schedule.first, process.schedule.timesteps, count))
        c = process.coefficients(levels)
        is_data = jnp.arange(x.shape[-1]) < self.data_space.shape[-1]
        scale = jnp.where(is_data, for_examples(c.input * initial_std(levels), x), 1.0)
        x = scale * jax.random.normal(key, (count, *x.shape[1:]))
        return x, jnp.broadcast_to(c.time, count), inputs

    def _example_inputs(self, condition_params: Params, key: PRNGKey) -> dict[str, Array]:
        """Returns zeros of the shapes of the network's inputs; frozen models are not run."""
        size = self.image_spec.size
        conditions = {
            "label": jnp.zeros(1, jnp.int32),
            "original": jnp.zeros((1, size, size, self.image_spec.channels)),
            "number": jnp.zeros(1),
        }
        if self.text:
            conditions["tokens"] = jnp.zeros((1, self.text.length), jnp.int32)
        if "image_embedding" in self.required_inputs:  # samples need no image encoder
            conditions["image_embedding"] = jnp.zeros((1, self.required_inputs["image_embedding"]))

        def network_inputs(frozen: Variables) -> dict[str, Array | None]:
            variables = {"frozen": frozen}
            values = self.conditions.encode(self._condition_inputs(variables, conditions, key[None]))
            return self.conditions.network_inputs(condition_params, values, self._clip(variables))._asdict()

        shapes = jax.eval_shape(network_inputs, self.frozen)
        return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items() if leaf is not None}

    @property
    def fits_first_batch(self) -> bool:
        return self.teacher is not None

    @property
    def group_size(self) -> int:
        return self.process.group

    def prepare(self, variables: Variables, batch: Batch) -> Variables:
        """Returns fresh variables with the weights of the teacher, where paths and shapes agree."""
        params, theirs = (flatten({"params": v["params"]}) for v in (variables, variables["frozen"]["teacher"]))
        theirs = self.complete(theirs)
        for path, leaf in params.items():
            if path in theirs and theirs[path].shape == leaf.shape:
                params[path] = theirs[path]
        return {**variables, **unflatten(params)}

    def complete(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns weights of another model by path, with zeros for the interval of a step if only this model has it."""
        if not self.process.needs.interval:
            return weights
        added = {}
        for name, leaf in self.variable_shapes["params"]["model"]["embedding"].items():
            path = f"params/model/embedding/{name}"
            if path not in weights and isinstance(self.network, UNet | DiT):  # others change without the layer
                added[path] = jnp.zeros(leaf.shape, leaf.dtype)
            elif path in weights and leaf.shape[0] - weights[path].shape[0] == _INTERVAL_WIDTH:
                added[path] = jnp.pad(weights[path], ((0, _INTERVAL_WIDTH), (0, 0)))  # conditions are first
        return {**weights, **added}

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {"model": self.loss}

    def constrain(self, params: Any) -> Any:
        """Normalises the kernels of magnitude-preserving layers: forced weight normalisation of EDM2."""
        return normalize_kernels(params)

    def loss(
        self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext
    ) -> tuple[Float[Array, " B"], Aux]:
        """Returns the loss of denoising, with conditions dropped at random: DDPM, algorithm 1.

        Conditions that are computed from the image are computed from the augmented one.
        """
        if self.conditions.guidance_scale and not self.teacher and self.process.guidance is None:
            raise UserError(
                "teacher='': conditions.guidance_scale is the scale of a teacher's guidance; set a teacher, or "
                "diffusion.loss=improved_mean_flow"
            )
        augment = self.nonleaky_augmentation
        conditions_keys, dropout_keys, noise_keys, crop_keys, *augment_keys = split_each(keys, 5 if augment else 4)
        crop = functools.partial(random_crop, crop_keys, self.crop) if self.crop else lambda x: x
        x_0, values, images = self._examples(variables, batch, conditions_keys, *augment_keys)
        bind_network = functools.partial(self._bound_network, values=values, dropout_keys=dropout_keys, crop=crop)
        average = {**variables, "params": variables.get("ema", variables["params"])}
        teacher = self._bound_teacher(variables, values, crop) if self.teacher else None
        options: dict[str, Any] = {}
        penalty = None
        if self.alignment and images is not None:
            options["tokens_after"] = self.alignment.block
            penalty = self.alignment.bind(variables, images)
        value, memory, metrics = self.process.bind(variables["params"]["model"]).train_loss(
            bind_network(variables, **options),
            crop(x_0),
            noise_keys,
            variables.get("times", {}),
            average=bind_network(average) if self.process.learns_flow_map else None,
            teacher=teacher,
            guidance=self._guidance(bind_network, variables, values),
            step=context.step,
            couple=self._coupling(batch, crop, context.gather, teacher),
            penalty=penalty,
        )
        return value, Aux(metrics, {"times": memory} if memory else {})

    def _guidance(
        self, bind_network: Callable[..., Network], variables: Variables, values: Mapping[str, Values]
    ) -> Guidance | None:
        """Returns the guidance of a flow map by its own network; None: the loss has none, or a teacher has it."""
        if self.teacher or not (self.conditions.guidance_scale or (self.process.guidance or 1.0) != 1.0):
            return None
        count = len(jax.tree.leaves(values)[0])
        predict = self.process.predictor(bind_network(variables, values=self.conditions.drop_all(values, count)))
        return Guidance(predict, ~self.conditions.are_dropped(values, count), values.get("guidance_scale"))

    def _examples(
        self, variables: Variables, batch: Batch, keys: PRNGKeys, augment_keys: PRNGKeys | None = None
    ) -> tuple[Array, dict[str, Values], Images | None]:
        """Returns the clean data of a batch, the values of its conditions, dropped at random, and images, if any."""
        original = None
        if stored := {"latent", "x0"} & batch.keys():  # computed before training
            conditions, x_0 = batch, batch[stored.pop()]
        else:
            original, conditions = to_unit_range(batch["image"]), dict(batch)
            if self.nonleaky_augmentation and augment_keys is not None:
                original, conditions["augment_label"] = self.nonleaky_augmentation(augment_keys, original)
            conditions["original"] = original
            x_0 = lax.stop_gradient(self.data_space.encode(variables, original))
        values = self.conditions.encode(self._condition_inputs(variables, conditions, keys))
        return x_0, self.conditions.drop_randomly(values, fold_in_each(keys, len(self.conditions.each))), original

    def _coupling(
        self,
        batch: Batch,
        crop: Callable[[Array], Array],
        gather: Callable[[Any], Any],
        teacher: Callable[[Array, Noise], Array] | None,
    ) -> Callable[[Array, Array], Pairs] | None:
        """Returns the function from (x_0, independent noise) to coupled pairs; None: they are independent."""
        if "noise" in batch:  # stored pairs
            return lambda x_0, eps: (x_0, crop(batch["noise"]))
        if not self.process.couples_noise:
            return None
        label = batch["label"] if self.conditions.classes else jnp.zeros_like(batch["index"])
        couple, schedule = self.process.coupling.bind(), self.process.schedule
        return lambda x_0, eps: couple(Examples(x_0, eps, label, batch["index"], gather, teacher, schedule))

    # Sampling

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        settings = make_diffusion_settings(
            self.process,
            sampler_config,
            guided=self.conditions.guided,
            guidance_range=(scale.low, scale.high) if (scale := self.conditions.guidance_scale) else None,
            cache_branches=getattr(self.network, "num_cache_branches", 0),
            has_shallow_features=isinstance(self.network, DiT),
            pixels=isinstance(self.data_space, PixelSpace),
            shape=self.data_space.shape,
            sees_mask="masked_image" in self.conditions.each,
            numbers=(number.low, number.high) if (number := self.conditions.number) else None,
            required_inputs=self.required_inputs,
            optimized_grids=self.optimized_grids,
            capacity=capacity,
            **overrides,
        )
        self._perturbed(settings["perturbation"])  # checks it
        return settings

    def notes(self, settings: SamplingSettings) -> Iterable[str]:
        process, steps = self.process, settings.num_steps
        if (count := process.distilled_steps) is None:
            return
        times, trained = settings.times[:steps], time_grids.trailing(count, process.schedule)[:-1]
        is_trained = np.isclose(times[:, None], trained[None])
        if is_trained.any(1).all() and (steps == count or process.matches_distributions):
            return
        name = f"sampler.steps={steps}" if steps != count else "sampler.grid"
        field = "loss=distribution_matching(generator_" if process.matches_distributions else "next_times=grid("
        yield (
            f"{name}: this run was distilled for {count} step{'s' * (count > 1)} of the grid trailing "
            f"(diffusion.{field}steps={count}))"
        )

    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Array:
        conditions = with_settings(conditions, settings, len(keys))
        bound = self.bind(variables, conditions, condition_keys(keys), settings["augmentation"])
        return bound.sample(keys, settings, conditions, observer=observer)

    def bind(
        self,
        variables: Variables,
        conditions: Mapping[str, Array],
        keys: PRNGKeys | None = None,
        level: Array | float = 0.0,
    ) -> BoundModel:
        """Binds the model to variables and conditions, which are encoded here, once.

        Args:
          conditions: arrays [B, ...] by name, as of `sample`. Those of one example hold for all of a batch.
            "negative_tokens" are captions that guidance moves away from, instead of null captions.
          keys: keys of the conditions, for augmentation and random masks; None: fixed ones.
          level: level [0, 1] of conditioning augmentation.
        """
        count = len(jax.tree.leaves(conditions)[0])
        keys = jax.random.split(jax.random.key(0), count) if keys is None else keys
        values = self.conditions.encode(self._condition_inputs(variables, conditions, keys, level))
        process = self.process.bind(variables["params"]["model"])
        null_values = self.conditions.drop_all(values, count)
        if "negative_tokens" in conditions and self.conditions.guided_text:
            negative = {**conditions, "tokens": conditions["negative_tokens"]}
            others = self.conditions.encode(self._condition_inputs(variables, negative, keys, level))
            null_values |= {name: others[name] for name in self.conditions.guided_text}
        unconditional = None
        if self.conditions.supports_guidance and not self.conditions.guidance_scale:
            unconditional = process.denoiser(self._bound_network(variables, null_values))

        def alone(name: str) -> Denoiser:
            return process.denoiser(self._bound_network(variables, {**null_values, name: values[name]}))

        last_step = None
        if self.last_step is not None:
            last_step = self.last_step.bind(variables["frozen"]["last_step"], conditions, keys, level)
        return BoundModel(
            process,
            process.denoiser(self._bound_network(variables, values)),
            unconditional,
            self.data_space.shape,
            functools.partial(self.data_space.encode, variables),
            functools.partial(self.data_space.decode, variables),
            last_step,
            lambda text: process.denoiser(self._perturbed(text)._bound_network(variables, values)),
            alone,
        )

    def _perturbed(self, text: str) -> "DiffusionModel":
        """Returns the model with a perturbed network, for guidance.

        Raises:
          UserError: an unknown perturbation, or blocks that the network does not have or cannot be without.
        """
        perturbation = lookup("sampler.perturbation", perturbations, text)
        side = self.data_space.shape[0]
        if perturbation.name == "none":
            return self
        if not isinstance(self.network, UNet | DiT):
            raise UserError(f"sampler.perturbation={text}: requires a UNet or a DiT; leave it at none")
        count = self.network.layers if isinstance(self.network, DiT) else self.network.num_attention_blocks(side)
        blocks = perturbation.values
        if not blocks or any(block != int(block) or not 0 <= block < count for block in blocks):
            have = f"from 0 to {count - 1}" if count else "but this network has none"
            raise UserError(f"sampler.perturbation={text}: must have numbers of blocks, {have}")
        network = self.network.clone(**perturbation.function(*blocks))
        if isinstance(network, DiT) and network.value_residual and 0 in network.skipped_blocks:
            raise UserError(
                f"sampler.perturbation={text}: later blocks use values of block 0 (model.value_residual); skip others"
            )
        return dataclasses.replace(self, network=network)

    # The network and its inputs

    def _clip(self, variables: Variables) -> Clip | None:
        return self.contrastive.clip(variables["frozen"]["clip"]) if self.contrastive else None

    def _condition_inputs(
        self,
        variables: Variables,
        conditions: Mapping[str, Array],
        keys: PRNGKeys,
        level: Array | float | None = None,
    ) -> ConditionInputs:
        encode_image = functools.partial(self.data_space.encode, variables)
        return ConditionInputs(
            conditions, keys, self._clip(variables), encode_image=encode_image, augmentation_level=level
        )

    def _bound_teacher(
        self, variables: Variables, values: Mapping[str, Values], crop: Callable[[Array], Array] = lambda x: x
    ) -> Callable[[Array, Noise], Array]:
        """Returns the teacher's x_0 at the noise levels of examples, guided towards the values of conditions.

        `crop` is as of `_bound_network`.
        """
        teacher = cast(DiffusionModel, self.teacher)
        frozen = variables["frozen"]["teacher"]
        predict = teacher.process.predictor(teacher._bound_network(frozen, values, crop=crop))
        if self.teacher_guidance == 1.0 and "guidance_scale" not in values:
            return lambda x, now: predict(x, now).x0(x)
        scale = jnp.asarray(values.get("guidance_scale", self.teacher_guidance))
        null_values = teacher.conditions.drop_all(values, len(jax.tree.leaves(values)[0]))
        predict_null = teacher.process.predictor(teacher._bound_network(frozen, null_values, crop=crop))

        def guided(x: Array, now: Noise) -> Array:
            without = predict_null(x, now).x0(x)
            return without + for_examples(scale, x) * (predict(x, now).x0(x) - without)

        return guided

    def _bound_network(
        self,
        variables: Variables,
        values: Mapping[str, Values],
        dropout_keys: PRNGKeys | None = None,
        crop: Callable[[Array], Array] = lambda x: x,
        **options: Any,
    ) -> Network:
        """Returns the network bound to its parameters and the values of conditions; `crop` crops those with pixels.

        It maps (x_t, time), with `process.needs.interval` (x_t, time, interval), to its output. `options` and those of
        the call are passed to the network.
        """
        params = variables["params"]["model"]
        inputs = self.conditions.network_inputs(params.get("conditions", {}), values, self._clip(variables))
        inputs = {name: value for name, value in inputs._asdict().items() if value is not None}
        channels = crop(inputs.pop("channels")) if "channels" in inputs else None

        def network(
            x: Array, t: Float[Array, " B"], interval: Float[Array, " B"] | None = None, **call_options: Any
        ) -> Any:
            def for_batch(value: Array) -> Array:
                return jnp.broadcast_to(value, (len(x), *value.shape[1:]))

            each = jax.tree.map(for_batch, inputs)
            each = each if interval is None else _with_interval(each, interval)
            x = x if channels is None else jnp.concatenate([x, for_batch(channels)], axis=-1)
            return apply(self.network, params, x, t, **each, dropout_keys=dropout_keys, **options, **call_options)

        return network


def _with_interval(inputs: Mapping[str, Array], interval: Float[Array, " B"]) -> dict[str, Array]:
    """Returns inputs of the network with the interval of the step as an embedding, after that of conditions."""
    embedding = timestep_embedding(interval, _INTERVAL_WIDTH, convention="adm")
    others = [inputs["embedding"]] if "embedding" in inputs else []
    return {**inputs, "embedding": jnp.concatenate([*others, embedding], axis=-1)}


def with_settings(conditions: Mapping[str, Array], settings: SamplingSettings, count: int) -> Mapping[str, Array]:
    """Returns conditions [count, ...] with a number and a guidance scale of the settings, unless they have them."""
    names = {"number": "number", "guidance_scale": "guidance"}
    return {
        **{name: jnp.full(count, settings[scalar]) for name, scalar in names.items() if scalar in settings.scalars},
        **conditions,
    }


def condition_keys(keys: PRNGKeys) -> PRNGKeys:
    """Returns the keys of the conditions of samples, for augmentation and random masks."""
    return fold_in_each(keys, _CONDITIONS_FOLD)


def random_crop(keys: PRNGKeys, size: int, x: Float[Array, "B H W C"]) -> Float[Array, "B size size C"]:
    """Returns a random square of each example, at a position that depends on the key alone."""

    def crop(key: PRNGKey, x: Float[Array, "H W C"]) -> Array:
        top, left = jax.random.randint(key, (2,), 0, x.shape[0] - size + 1)
        return lax.dynamic_slice(x, (top, left, 0), (size, size, x.shape[-1]))

    return jax.vmap(crop)(keys, x)
