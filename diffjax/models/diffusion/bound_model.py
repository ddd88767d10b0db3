"""A trained diffusion model, bound to its parameters and to conditions."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.diffusion import clipping, feature_caching, guidance, guided_steps, samplers, sampling
from diffjax.diffusion.denoiser import Denoiser, with_clipping, with_last_step
from diffjax.diffusion.feature_caching import Features
from diffjax.diffusion.noise import Noise, initial_std
from diffjax.diffusion.random import normal_each, split_each
from diffjax.models.diffusion import guidance_settings, inverse_settings
from diffjax.models.diffusion.data_space import downsample_mask
from diffjax.models.diffusion.process import Process
from diffjax.models.observation import Observer
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.registry import lookup
from diffjax.typing import Embeddings, Images, PRNGKeys

Classify = Callable[[Array, Noise], Float[Array, "B K"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guides:
    """Models that guide the samples of another; all trained with its noise schedule.

    Attributes:
      classify: (x, noise) -> logits of the classes; guides to the condition "label".
      weak: denoiser of a weaker model, for autoguidance.
      embed_noised: (x, noise) -> CLIP embeddings of noised images; guides to `text_embeddings`.
      text_embeddings: CLIP embeddings of captions.
    """

    classify: Classify | None = None
    weak: Denoiser | None = None
    embed_noised: Callable[[Array, Noise], Embeddings] | None = None
    text_embeddings: Embeddings | None = None


@dataclasses.dataclass(frozen=True)
class BoundModel:
    """A trained diffusion model, bound to its parameters and to conditions.

    Attributes:
      process: the diffusion process.
      denoiser: under the conditions.
      unconditional: denoiser under the null conditions, for classifier-free guidance; None: it is not supported.
      shape: shape of one example of the data.
      encode: images to data.
      decode: data to images or embeddings.
      perturbed: maps a choice of perturbations.py to the denoiser of the perturbed network; None: it is not supported.
      alone: maps the name of a condition to the denoiser with this condition alone, for a scale of its own; None: it is
        not supported.
      last_step: another model of the same data, for the last step of `sample`; None: this one.
    """

    process: Process
    denoiser: Denoiser
    unconditional: Denoiser | None
    shape: tuple[int, ...]
    encode: Callable[[Images], Array] = lambda images: images
    decode: Callable[[Array], Array] = lambda x: x
    last_step: "BoundModel | None" = None
    perturbed: Callable[[str], Denoiser] | None = None
    alone: Callable[[str], Denoiser] | None = None

    def sample(
        self,
        keys: PRNGKeys,
        settings: SamplingSettings,
        conditions: Mapping[str, Array],
        guides: Guides = Guides(),
        observer: Observer | None = None,
    ) -> Array:
        """Samples one output per key.

        Args:
          conditions: arrays [B, ...] by name. Without a "mask", "image" [-1, 1] is the start of image-to-image, and
            "other_image" with "other_weight" [B] one to interpolate with; with it, the image whose region of mask 1 is
            known. "measurement" is that of the settings' operator. "latent" is the initial x_T.
          observer: receives the steps on the host, and the evaluations of a sampler with adaptive step sizes.

        Returns:
          Images [-1, 1], or embeddings [B, D].
        """
        schedule, steps = self.process.schedule, settings["steps"]
        levels = schedule(settings.times)
        for name in ("image", "other_image"):
            if name in conditions:
                conditions = {**conditions, name: self.encode(conditions[name])}
        if "mask" in conditions:
            conditions = {**conditions, "mask": downsample_mask(conditions["mask"][..., :1], self.shape[0])}

        def denoiser_with(features: Features, average: Array | None = None) -> Denoiser:
            denoise = self.guided_denoiser(settings, conditions, guides, average, features)
            if self.last_step is None:
                return denoise
            last = self.last_step.guided_denoiser(settings, conditions, guides, average)
            return with_last_step(denoise, last, settings.times[steps - 1])

        def step_denoiser(features: Features) -> Any:
            return functools.partial(denoiser_with, features) if has_memory else denoiser_with(features)

        make_sampler = lookup("sampler", samplers, settings["sampler"]).bind(
            schedule=schedule, steps=steps, variance=self.process.variance.bind()
        )
        sampler = make_sampler(**settings.sampler_options)
        if settings["measure"]:
            sampler = guided_steps.with_displacement(sampler)
        has_memory = self.unconditional is not None and guidance_settings.has_memory(settings)
        if has_memory:
            sampler = guided_steps.with_memory(sampler)
        caches = settings["cache_branch_id"] is not None
        if caches:
            compute = functools.partial(self._features, settings)
            if settings["cache_by_change"]:
                probe = functools.partial(self._features, settings, deep=0.0)
                sampler = feature_caching.with_features_by_change(sampler, settings["cache_threshold"], probe, compute)
            else:
                sampler = feature_caching.with_cached_features(sampler, settings["cache_interval"], compute)
        is_edit = "image" in conditions and not {"latent", "mask"} & conditions.keys()
        begin, observing = settings["begin"] if is_edit else 0, {}
        if observer is not None:
            decode = self.decode if len(self.shape) > 1 else None  # embeddings are not images
            observing["observe"] = observer.of_loop(denoiser_with({}), begin, steps, decode)
            observing["report"] = observer.evaluations.append
        denoiser: Any = step_denoiser if caches else step_denoiser({})
        loop = keys, denoiser, sampler, levels, steps
        options = {name: settings[name] for name in ("temperature", "brownian")} | observing
        if "latent" in conditions:
            x = sampling.run(*loop, conditions["latent"], **options)
        elif is_edit:
            options |= {"other": conditions.get("other_image"), "other_weight": conditions.get("other_weight")}
            x = sampling.edit(*loop, conditions["image"], begin=begin, **options)
        else:
            resample_steps = settings["resample_steps"]
            x = sampling.sample(*loop, shape=self.shape, resample_steps=resample_steps, **options)
        return self.decode(x)

    def initial_latents(self, keys: PRNGKeys, settings: SamplingSettings) -> Array:
        """Returns the x_T [B, *shape] that `sample` starts from."""
        first_keys, _ = split_each(keys)
        return initial_std(self.process.schedule(settings.times[0])) * normal_each(first_keys, self.shape)

    def invert(self, images: Images, settings: SamplingSettings) -> Array:
        """Returns the x_T [B, *shape] of images by DDIM inversion, without guidance: `sampling.encode`."""
        schedule, x0 = self.process.schedule, self.encode(images)
        return sampling.encode(self.denoiser, x0, schedule(settings.times), settings["steps"], schedule(schedule.first))

    def guided_denoiser(
        self,
        settings: SamplingSettings,
        conditions: Mapping[str, Array],
        guides: Guides = Guides(),
        average: Array | None = None,
        features: Features | None = None,
    ) -> Denoiser:
        """Returns the denoiser with each guidance, then clipping and inpainting applied.

        Args:
          average: running average of guidance with momentum: see guided_steps.py; None: no memory.
          features: deep features of `_features`, which the networks reuse; None or {}: they are computed.
        """
        denoisers = self._denoisers(settings)
        for name, deep in (features or {}).items():
            denoisers[name] = functools.partial(denoisers[name], cache_branch=settings["cache_branch_id"], deep=deep)
        denoise, interval = denoisers["conditional"], (settings["guidance_low"], settings["guidance_high"])
        last = float(self.process.schedule.timesteps)
        if "perturbed" in denoisers:
            perturbed_scale = guidance_settings.bind_scale(settings, "perturbed_scale", last)
            denoise = guidance.perturbed(denoise, denoisers["perturbed"], perturbed_scale, interval=interval)
        if "unconditional" in denoisers:
            denoise = guidance.classifier_free(
                denoise,
                denoisers["unconditional"],
                guidance_settings.bind_scale(settings, "guidance", last),
                rule=guidance_settings.bind_rule(settings),
                rescale=settings["guidance_rescale"],
                interval=interval,
                channels=settings["guidance_channels"],
                average=average,
                first=denoisers.get("first"),
                first_scale=settings["first_scale"],
            )
        if "perturbed" in denoisers:
            denoise = guidance.with_shift(denoise)
        if guides.weak is not None:
            weak_scale = guidance_settings.bind_scale(settings, "weak_scale", last)
            denoise = guidance.autoguidance(denoise, guides.weak, weak_scale, interval=interval)
        if guides.classify is not None:
            denoise = guidance.classifier(denoise, guides.classify, conditions["label"], settings["classifier_scale"])
        if guides.embed_noised is not None and guides.text_embeddings is not None:
            denoise = guidance.clip_similarity(
                denoise, guides.embed_noised, guides.text_embeddings, settings["clip_scale"]
            )
        if settings["measure"]:
            denoise = inverse_settings.bind_method(settings)(denoise, conditions["measurement"])
        denoise = with_clipping(denoise, lookup("threshold", clipping, settings["threshold"]).bind())
        if "mask" in conditions and settings["keep_known"]:
            denoise = guidance.inpaint(denoise, conditions["image"], conditions["mask"])
        return denoise

    def _denoisers(self, settings: SamplingSettings) -> dict[str, Denoiser]:
        """Returns the denoisers that classifier-free and perturbed guidance combine, by name."""
        denoisers = {"conditional": self.denoiser}
        if self.unconditional is not None:
            denoisers["unconditional"] = self.unconditional
            if self.alone is not None and settings["first_condition"]:
                denoisers["first"] = self.alone(settings["first_condition"])
        if self.perturbed is not None and settings["perturbation"] != "none":
            denoisers["perturbed"] = self.perturbed(settings["perturbation"])
        return denoisers

    def _features(self, settings: SamplingSettings, x: Array, level: Noise, deep: float | None = None) -> Features:
        """Returns the deep features of each network at noised examples, with `deep` the shallow ones.

        They are zeros for guidance that is off.
        """
        denoisers = self._denoisers(settings)

        def compute(name: str) -> Any:
            return denoisers[name](x, level, cache_branch=settings["cache_branch_id"], deep=deep).features

        features = {"conditional": compute("conditional")}
        is_guided, is_perturbed = settings.is_guided, settings["perturbed_scale"] != 1.0
        is_used = {"unconditional": is_guided, "first": is_guided, "perturbed": is_perturbed}
        zeros = jnp.zeros_like(features["conditional"])
        for name in is_used:
            if name in denoisers:
                features[name] = lax.cond(is_used[name], functools.partial(compute, name), lambda: zeros)
        return features
