"""Diffusion models of configs: on pixels, on latents, and unCLIP's prior on CLIP embeddings.

References:
  Ho et al. 2020, "Denoising diffusion probabilistic models" (DDPM), and what followed it by options of the config.
  Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models".
  Nichol et al. 2021, "GLIDE".
  Ramesh et al. 2022, "Hierarchical text-conditional image generation with CLIP latents" (unCLIP).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from flax import linen as nn
from ml_collections import ConfigDict

from diffjax.errors import UserError, validate_number
from diffjax.models.base import Autoencoder, ContrastiveModel, Model, TrainedStage, abstract_value
from diffjax.models.diffusion import distribution_matching
from diffjax.models.diffusion.condition_kinds import ClassLabel, ClassToken, ClipText, GuidanceScale
from diffjax.models.diffusion.conditions import Conditions, make_conditions
from diffjax.models.diffusion.data_space import (
    DataSpace,
    EmbeddingSpace,
    PixelSpace,
    StandardizedSpace,
    latent_space,
    pixel_space,
)
from diffjax.models.diffusion.distribution_matching import DistributionMatchingModel
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.diffusion.nonleaky_augmentation import NonLeakyAugmentation
from diffjax.models.diffusion.process import Process, have_same_noise
from diffjax.models.diffusion.representation_alignment import Encoder, make_alignment
from diffjax.models.networks import check_buildable, dtype_of, make, make_denoiser
from diffjax.models.parameter_paths import flatten
from diffjax.nn.prior_transformer import PriorTransformer
from diffjax.nn.unet import UNet
from diffjax.typing import ImageSpec, Variables

TrainedClip = tuple[ContrastiveModel, Variables]
TrainedEncoder = tuple[Encoder, Variables]


def build_ddpm(
    config: ConfigDict,
    spec: ImageSpec,
    clip: TrainedClip | None = None,
    last_step: TrainedStage | None = None,
    teacher: TrainedStage | None = None,
    alignment: TrainedEncoder | None = None,
) -> DiffusionModel:
    """Builds a diffusion model on pixels.

    Its conditions make it the base of GLIDE (caption), unCLIP's decoder (CLIP embedding), an upsampler (low-resolution
    image), or a model for inpainting (masked image).

    Args:
      clip: CLIP of the conditions.
      last_step: a diffusion model of the same data, for the last step of sampling.
      teacher: a diffusion model of the same data and conditions, which training distils.
      alignment: image encoder of the section `alignment`.

    Raises:
      UserError: an unknown choice, or one that does not fit.
    """
    space = pixel_space(spec, config.diffusion.get("downsample", 1))
    parts: dict[str, Any] = {"clip": clip} if clip else {}
    if last_step:
        parts["last_step"] = (last_step.model, last_step.variables)
    model = _build_image_model(config, spec, space, parts, teacher, alignment)
    if last_step:
        _check_last_step(model, last_step.model)
    return model


def _check_last_step(model: DiffusionModel, last: Model) -> None:
    """Raises UserError for a model that cannot take the last step of another's samples."""
    if not isinstance(last, DiffusionModel):
        raise UserError("last_step: must be a diffusion model; name one that is trained with the config of this run")
    for name, is_equal in (
        ("size and channels of x_t", model.data_space.shape == last.data_space.shape),
        ("low-resolution image or embedding", model.required_inputs == last.required_inputs),
        ("noise schedule", have_same_noise(model.noise_schedule, last.noise_schedule)),
        ("variance", model.process.learns_variance == last.process.learns_variance),
    ):
        if not is_equal:
            raise UserError(f"last_step: has another {name} than the run; train both with one config")


def build_latent(
    config: ConfigDict,
    spec: ImageSpec,
    codec: tuple[Autoencoder, Variables] | None = None,
    clip: TrainedClip | None = None,
    teacher: TrainedStage | None = None,
    alignment: TrainedEncoder | None = None,
) -> DiffusionModel:
    """Builds a diffusion model on the latents of a trained autoencoder, such as Stable Diffusion 1 and 2.

    Args:
      codec: the autoencoder.
      clip: CLIP of the conditions.
      teacher: a diffusion model of the same data and conditions, which training distils.
      alignment: image encoder of the section `alignment`.

    Raises:
      UserError: a missing autoencoder, an unknown choice, or one that does not fit.
    """
    if codec is None:
        raise UserError("codec='': system=latent requires a trained autoencoder; set --config.codec=WORKDIR")
    parts = {"codec": codec} | ({"clip": clip} if clip else {})
    return _build_image_model(config, spec, latent_space(codec[0], codec[1]), parts, teacher, alignment)


def _build_image_model(
    config: ConfigDict,
    spec: ImageSpec,
    space: DataSpace,
    parts: Mapping[str, Any],
    teacher: TrainedStage | None,
    alignment: TrainedEncoder | None,
) -> DiffusionModel:
    """Builds a diffusion model with the network of `config.model`: a UNet or DiT."""
    process = Process.from_config(config.diffusion)
    clip = abstract_value(parts["clip"][0].clip, parts["clip"][1]) if "clip" in parts else None
    conditions = make_conditions(config, spec, space, clip)
    network = make_denoiser(
        config,
        spec,
        space.shape,
        num_label_embeddings=conditions.num_label_embeddings,
        learns_variance=process.learns_variance,
    )
    text = conditions.each.get("clip_text")
    if isinstance(text, ClipText) and text.masked and (not isinstance(network, UNet) or network.transformer_depth):
        raise UserError(
            "conditions.clip_text.mask_padding=True: requires a UNet with attention blocks; set "
            "model.architecture=unet and model.transformer_depth=0, or mask_padding=False"
        )
    if teacher is not None:
        parts = {**parts, "teacher": (teacher.model, teacher.variables)}
    if alignment is not None:
        parts = {**parts, "alignment": alignment}
    kind = DistributionMatchingModel if process.matches_distributions else DiffusionModel
    model = make_diffusion_model(config, spec, process, space, conditions, network, parts, kind)
    if isinstance(model, DistributionMatchingModel):
        distribution_matching.check(model)
    if teacher is not None:
        _check_teacher(model, teacher.model)
    return model


def _check_teacher(model: DiffusionModel, teacher: Model) -> None:
    """Raises UserError for a model that another cannot be distilled from."""
    if not isinstance(teacher, DiffusionModel):
        raise UserError("teacher: must be a diffusion model; name one of the data of this run")
    theirs, ours = teacher.noise_schedule, model.noise_schedule
    reflows = model.process.coupling.name == "reflow"
    has_same_coupling = reflows or model.process.coupling.name == teacher.process.coupling.name
    is_same = [
        ("size and channels of x_t", model.data_space.shape == teacher.data_space.shape),
        ("conditions", _without_scale(model.conditions) == _without_scale(teacher.conditions)),
        ("noise schedule", theirs.timesteps == ours.timesteps and have_same_noise(theirs, ours)),
        ("coupling", has_same_coupling),
    ]
    if model.process.matches_distributions:  # the fake score starts as the teacher
        is_same += [
            ("parameterization", _parameterization(model) == _parameterization(teacher)),
            ("network", _has_weights(model, teacher)),
        ]
    for name, is_equal in is_same:
        if not is_equal:
            raise UserError(
                f"teacher: has another {name} than the run; set the fields of the run to those of the teacher"
            )
    if not (model.process.learns_flow_map or model.process.matches_distributions or reflows):
        raise UserError(
            f"diffusion.loss={model.process.loss.name}: has no teacher; set teacher='', a loss of flow maps or "
            "distribution_matching, or coupling=reflow"
        )
    is_guided = model.teacher_guidance != 1.0 or model.conditions.guidance_scale is not None
    if is_guided and not teacher.conditions.supports_guidance:
        raise UserError(
            f"diffusion.teacher_guidance={model.teacher_guidance:g}, conditions.guidance_scale: require a teacher "
            "trained with dropped conditions, such as diffusion.label_dropout > 0; set it to 1, remove the other"
        )


def _parameterization(model: DiffusionModel) -> tuple[Any, ...]:
    """Returns what determines the inputs of a network and the meaning of its output."""
    return *model.process.parameterization, model.process.time_scale


def _has_weights(model: DiffusionModel, other: DiffusionModel) -> bool:
    """Returns whether a model has all parameters that another samples with, with the same shapes.

    A scale of distilled guidance changes those of the layer `augment`, which then start at random.
    """
    ours, theirs = (flatten(one.variable_shapes["params"]["model"]) for one in (model, other))
    omitted = ("alignment/", "augment/") if model.conditions.guidance_scale else "alignment/"
    return all(
        name in ours and ours[name].shape == leaf.shape for name, leaf in theirs.items() if not name.startswith(omitted)
    )


def _without_scale(conditions: Conditions) -> Conditions:
    """Returns conditions without the scale of distilled guidance."""
    each = {name: condition for name, condition in conditions.each.items() if name != "guidance_scale"}
    return dataclasses.replace(conditions, each=each)


def build_unclip_prior(config: ConfigDict, spec: ImageSpec, clip: TrainedClip | None = None) -> DiffusionModel:
    """Builds unCLIP's diffusion prior, which samples the CLIP embedding of an image from a caption: section 2.2.

    Raises:
      UserError: a missing CLIP, an unknown choice, or one that does not fit.
    """
    if clip is None:
        raise UserError("clip='': system=unclip_prior requires a trained CLIP; set --config.clip=WORKDIR")
    process = Process.from_config(config.diffusion)
    if process.needs.interval or process.matches_distributions:
        raise UserError(
            f"diffusion.loss={process.loss.name}: is not supported for system=unclip_prior; choose another loss"
        )
    if process.learns_variance:
        raise UserError(
            f"diffusion.variance={config.diffusion.variance}: is not supported for system=unclip_prior; set it to "
            "fixed_small or fixed_large"
        )
    clip_spec = abstract_value(clip[0].clip, clip[1])
    scale = validate_number("diffusion.embedding_scale", config.diffusion.embedding_scale, low=0, exclusive="low")
    space_class = StandardizedSpace if config.diffusion.get("standardize_embeddings", False) else EmbeddingSpace
    space = space_class((clip_spec.dimensions,), clip[0], scale)
    conditions = make_conditions(config, spec, space, clip_spec, masked=True)
    if any(not isinstance(condition, ClipText) for condition in conditions.each.values()):
        raise UserError(
            f"conditions={', '.join(conditions.each)}: system=unclip_prior supports clip_text only; remove the others"
        )
    network = make(PriorTransformer, config.model, "model", dtype=dtype_of(config))
    return make_diffusion_model(config, spec, process, space, conditions, network, {"clip": clip})


def make_diffusion_model(
    config: ConfigDict,
    spec: ImageSpec,
    process: Process,
    data_space: DataSpace,
    conditions: Conditions,
    network: nn.Module,
    parts: Mapping[str, tuple[Model, Variables]],
    kind: type[DiffusionModel] = DiffusionModel,
) -> DiffusionModel:
    """Builds the diffusion model of a config, and checks it.

    Args:
      parts: trained models: "clip" for conditions or the data space, "codec" for the data space, "last_step" for the
        last step of sampling, "teacher" to distil, "alignment" for the alignment of tokens.
      kind: class of the model.

    Raises:
      UserError: parts of the config do not fit together.
    """
    if process.needs.derivative:
        network = _without_cudnn(network)
    if process.needs.teacher and not config.get("teacher"):
        raise UserError(f"teacher='': diffusion.loss={process.loss.name} distils a run; set --config.teacher=WORKDIR")
    _check_own_guidance(config, process, conditions)
    if process.loss.options.get("heun") and not config.get("teacher"):
        raise UserError(
            f"diffusion.loss={config.diffusion.loss}: has no effect without a teacher, which heun=True follows; set "
            "--config.teacher=WORKDIR, or remove heun"
        )
    if process.coupling.name == "minibatch":
        _check_minibatch(conditions)
    if process.coupling.name == "reflow" and not config.get("teacher"):
        raise UserError("teacher='': diffusion.coupling=reflow samples a run; set --config.teacher=WORKDIR")
    crop = config.diffusion.get("crop", 0)
    if crop:
        _check_crop(crop, data_space.shape[0], network)
    has_data_size = isinstance(data_space, PixelSpace | EmbeddingSpace)
    model = kind(
        image_spec=spec,
        process=process,
        data_space=data_space,
        conditions=conditions,
        network=network,
        contrastive=cast(ContrastiveModel, parts["clip"][0]) if "clip" in parts else None,
        crop=crop,
        nonleaky_augmentation=NonLeakyAugmentation.from_config(config),
        last_step=cast(DiffusionModel, parts["last_step"][0]) if "last_step" in parts else None,
        teacher=cast(DiffusionModel, parts["teacher"][0]) if "teacher" in parts else None,
        teacher_guidance=_teacher_guidance(config, conditions),
        alignment=make_alignment(config, spec, process, network, parts.get("alignment")),
        classes=conditions.classes,
        text=conditions.text,
        frozen={name: part[1] for name, part in parts.items()},
        required_inputs=conditions.required_inputs,
        reads_number=conditions.number is not None,
        output_size=data_space.shape[0] if has_data_size else spec.size,
        outputs_embeddings=isinstance(data_space, EmbeddingSpace),
    )
    model.make_settings(config.sampler)  # reports invalid settings before training
    check_buildable(model)
    return model


def _teacher_guidance(config: ConfigDict, conditions: Conditions) -> float:
    """Returns the scale of the teacher's guidance. Raises UserError if it is invalid or has no effect."""
    scale = validate_number("diffusion.teacher_guidance", config.diffusion.get("teacher_guidance", 1.0), low=0)
    if scale == 1:
        return scale
    if not config.get("teacher"):
        raise UserError(
            f"diffusion.teacher_guidance={scale:g}: requires a teacher; set --config.teacher=WORKDIR, or leave it at 1"
        )
    if conditions.guidance_scale is not None:
        raise UserError(
            f"diffusion.teacher_guidance={scale:g}: has no effect with conditions.guidance_scale, which has a scale "
            "per example; leave it at 1, or remove that section"
        )
    return scale


def _check_own_guidance(config: ConfigDict, process: Process, conditions: Conditions) -> None:
    """Raises UserError for guidance of a flow map by its own network that does not fit the run."""
    if process.guidance is None:
        return
    loss, scale = process.loss, conditions.guidance_scale
    field = f"diffusion.loss={loss.name}, guidance={process.guidance:g}"
    is_fixed, has_teacher = process.guidance != 1, bool(config.get("teacher"))
    if is_fixed and has_teacher:
        raise UserError(f"{field}: is not supported with a teacher; set guidance=1, and diffusion.teacher_guidance")
    if is_fixed and scale is not None:
        raise UserError(
            f"{field}: has no effect with conditions.guidance_scale, which has a scale per example; set guidance=1, or "
            "remove that section"
        )
    if has_teacher or not (is_fixed or scale is not None):
        for name in loss.options.keys() - {"guidance"}:
            raise UserError(f"diffusion.loss={loss.name}, {name}: has no effect at guidance=1; remove it")
        return
    if not conditions.supports_guidance:
        raise UserError(f"{field}: guidance requires dropped conditions; set diffusion.label_dropout=0.1")
    if not process.has_equal_pairs:
        raise UserError(
            f"diffusion.next_times={process.next_times.name}: guidance of loss={loss.name} requires pairs of "
            "equal times; use second_sample with a share below 1"
        )
    if scale is not None and scale.low < 1:
        raise UserError(
            f"conditions.guidance_scale.low={scale.low:g}: must be at least 1 for loss={loss.name} without a teacher; "
            "set it to 1"
        )


def _without_cudnn(network: nn.Module) -> nn.Module:
    """Returns the network with attention that can be differentiated in forward mode, which cuDNN's cannot.

    Raises UserError if cuDNN is required.
    """
    attention = getattr(network, "attention", None)
    if attention == "cudnn":
        raise UserError(
            "model.attention=cudnn: does not support the derivative that diffusion.loss requires; set it to xla"
        )
    return network if attention is None else network.clone(attention="xla")


def _check_minibatch(conditions: Conditions) -> None:
    """Raises UserError for conditions that coupled noise would depend on; samples have independent noise."""
    kinds = (ClassLabel, ClassToken, GuidanceScale)
    if others := [name for name, condition in conditions.each.items() if not isinstance(condition, kinds)]:
        raise UserError(
            "diffusion.coupling=minibatch: is only supported with class labels, as the noise would depend on "
            f"conditions.{others[0]}; set it to independent"
        )


def _check_crop(crop: int, size: int, network: nn.Module) -> None:
    """Raises UserError for crops of an invalid size, or for a network that does not support them."""
    if not 0 < crop <= size:
        raise UserError(f"diffusion.crop={crop}: must be at most {size}, the size of x_t; 0: no crops")
    if not isinstance(network, UNet) or network.attention_resolutions or network.middle_attention:
        raise UserError(
            f"diffusion.crop={crop}: requires a network without attention, which can sample whole images (unCLIP, "
            "section 2.3); set model.attention_resolutions=() and model.middle_attention=False"
        )
    halvings = len(network.multipliers) - 1
    if crop % 2**halvings:
        raise UserError(
            f"diffusion.crop={crop}: must be a multiple of {2**halvings}, as model.multipliers halves it {halvings} "
            "times; change it, or use fewer multipliers"
        )
