"""Capabilities of models: whether a model samples, encodes, classifies, embeds or manipulates images."""

from typing import TypeGuard

from diffjax.models.base import (
    Autoencoder,
    Classifier,
    ContrastiveModel,
    GenerativeModel,
    ImageManipulation,
    LikelihoodModel,
    Model,
)
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.pipelines.pipeline import Pipeline
from diffjax.models.priors.code_prior import CodePrior
from diffjax.models.priors.masked import MaskedPrior


def is_generative(model: Model) -> TypeGuard[GenerativeModel]:
    """Returns whether the model samples images or embeddings."""
    return isinstance(model, GenerativeModel)


def outputs_embeddings(model: Model) -> bool:
    """Returns whether samples of the model, or its decoded latents, are embeddings [B, D] rather than images."""
    return bool(getattr(model, "outputs_embeddings", False))


def samples_images(model: Model) -> bool:
    return is_generative(model) and not outputs_embeddings(model)


def is_diffusion(model: Model) -> TypeGuard[DiffusionModel]:
    """Returns whether the model is a single diffusion model, which guidance, inversion and editing require."""
    return isinstance(model, DiffusionModel)


def is_pipeline(model: Model) -> TypeGuard[Pipeline]:
    """Returns whether the model is a pipeline of trained stages; it has no trained weights itself."""
    return isinstance(model, Pipeline)


def is_diffusion_or_pipeline(model: Model) -> bool:
    return is_diffusion(model) or is_pipeline(model)


def is_masked_prior(model: Model) -> TypeGuard[MaskedPrior]:
    return isinstance(model, MaskedPrior)


def samples_in_steps(model: Model) -> bool:
    """Returns whether sampling has a number of steps and a sampler that can be chosen."""
    return is_diffusion_or_pipeline(model) or is_masked_prior(model)


def is_code_prior(model: Model) -> TypeGuard[CodePrior]:
    """Returns whether the model samples codes of an autoencoder, of which some can be given."""
    return isinstance(model, CodePrior)


def is_upsampling_stage(model: Model) -> bool:
    """Returns whether the model is a pipeline stage conditioned on an image: an upsampler or a decoder."""
    return isinstance(model, GenerativeModel) and bool(model.required_inputs)


def is_autoencoder(model: Model) -> TypeGuard[Autoencoder]:
    return isinstance(model, Autoencoder)


def has_likelihood(model: Model) -> TypeGuard[LikelihoodModel]:
    """Returns whether the model has a likelihood, or a bound of it, in one forward pass."""
    return isinstance(model, LikelihoodModel)


def is_classifier(model: Model) -> TypeGuard[Classifier]:
    return isinstance(model, Classifier)


def is_clip(model: Model) -> TypeGuard[ContrastiveModel]:
    return isinstance(model, ContrastiveModel)


def is_text_conditioned(model: Model) -> bool:
    return model.text is not None


def takes_negative_prompts(model: Model) -> bool:
    """Returns whether classifier-free guidance of the model, or of a stage, can move away from a caption."""
    models = [stage.model for stage in model.stages.values()] if is_pipeline(model) else [model]
    return any(is_diffusion(one) and bool(one.conditions.guided_text) for one in models)


def manipulates_images(model: Model) -> TypeGuard[ImageManipulation]:
    """Returns whether the model manipulates images through their CLIP embeddings, as an unCLIP does."""
    return isinstance(model, ImageManipulation)


def reconditions_on_image(model: Model) -> bool:
    """Returns whether the model samples variations of an image: unCLIP, or a stage conditioned on an image."""
    return manipulates_images(model) or is_upsampling_stage(model)
