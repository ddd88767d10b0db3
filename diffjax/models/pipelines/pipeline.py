"""Pipelines: trained models sampled one after another, by one compiled program.

A pipeline trains nothing. Its config names its stages; `sampler.stages` has settings that replace those of a stage's
config. Overrides are named `stage:setting`; without a stage they are of the main stage.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from jaxtyping import Array

from diffjax.diffusion.random import fold_in_each
from diffjax.errors import UserError, unknown
from diffjax.models.base import GenerativeModel, Model, TrainedStage
from diffjax.models.observation import Observer
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.typing import Images, LossFn, PRNGKey, PRNGKeys, TextSpec, Variables

UPSAMPLERS = ("upsampler", "upsampler_2")
CAPTIONS = ("tokens", "negative_tokens")  # conditions with captions
# Folded into sample keys for the stages before the upsamplers, which fold their number in.
FIRST_STAGE_FOLD = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline(GenerativeModel):
    """A pipeline of trained stages, whose variables are variables["frozen"] by name.

    Attributes:
      stages: the stages that sample, by name.
      stage_names: names of all stages that the pipeline may have; a config's settings of absent ones are not used.
      main_stage: the stage whose settings need no stage's name.
      option_defaults: the pipeline's own settings and their defaults.
    """

    stages: Mapping[str, TrainedStage]

    stage_names: ClassVar[tuple[str, ...]]
    main_stage: ClassVar[str]
    option_defaults: ClassVar[Mapping[str, Any]] = {}

    def init(self, key: PRNGKey) -> Variables:
        return {"params": {}}

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {}

    def is_used(self, stage: str, options: Mapping[str, Any]) -> bool:
        """Returns True if a stage is sampled under the pipeline's own settings."""
        return True

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        options, sections = self.read_settings(sampler_config, overrides)
        for name in overrides:
            stage = name.rpartition(":")[0]
            if stage in self.stages and not self.is_used(stage, options):
                raise UserError(f"{name}={overrides[name]}: the stage {stage} is not used; change --prior")
        stages = {
            name: stage.make_settings(capacity, **sections.get(name, {}))
            for name, stage in self.stages.items()
            if self.is_used(name, options)
        }
        return SamplingSettings(choices=tuple(sorted(options.items())), stages=stages)

    def notes(self, settings: SamplingSettings) -> Iterable[str]:
        for name, stage_settings in settings.stages.items():
            yield from (f"{name}: {line}" for line in self.stages[name].model.notes(stage_settings))

    def read_settings(
        self, sampler_config: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Returns the pipeline's own settings, and those of each stage. Raises UserError for unknown names."""
        options = {**self.option_defaults, **sampler_config}
        sections = {name: dict(section) for name, section in options.pop("stages", {}).items()}
        absent = set(self.stage_names) - self.stages.keys()
        sections = {name: section for name, section in sections.items() if name not in absent}
        for name, value in overrides.items():
            stage, colon, setting = name.rpartition(":")
            if not colon and name in self.option_defaults:
                options[name] = value
            else:
                sections.setdefault(stage or self.main_stage, {})[setting] = value
        for name in sections:
            if name not in self.stages:
                raise unknown("stage", name, self.stages)
        for name in options:
            if name not in self.option_defaults:
                raise unknown("field of config.sampler", name, (*self.option_defaults, "stages"))
        return options, sections

    def sample_stage(
        self,
        stage: str,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Array:
        """Samples a stage."""
        observer = observer and observer.of_stage(stage)
        model, stage_variables = self.stages[stage].model, variables["frozen"][stage]
        return model.sample(stage_variables, keys, conditions, settings.stages[stage], observer)

    def upsample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        image: Images,
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Images:
        """Samples the upsamplers, each conditioned on the image of the stage before it.

        For inpainting they receive the known region too, but no image to start from.
        """
        conditions = select(conditions, *CAPTIONS, *(("image", "mask") if "mask" in conditions else ()))
        for i, stage in enumerate(name for name in UPSAMPLERS if name in self.stages):
            stage_conditions = {**conditions, "low_res_image": image.clip(-1.0, 1.0)}
            image = self.sample_stage(stage, variables, fold_in_each(keys, i), stage_conditions, settings, observer)
        return image


def select(conditions: Mapping[str, Array], *names: str) -> dict[str, Array]:
    """Returns the conditions of `names` that there are, and the label."""
    return {name: conditions[name] for name in ("label", *names) if name in conditions}


def present(**parts: TrainedStage | None) -> dict[str, TrainedStage]:
    """Returns the parts that are not None."""
    return {name: part for name, part in parts.items() if part}


def frozen_variables(parts: Mapping[str, TrainedStage]) -> dict[str, Variables]:
    """Returns the variables of each part; parts may be (model, variables)."""
    return {name: part[1] for name, part in parts.items()}


def upsampled_size(stages: Mapping[str, TrainedStage], size: int) -> int:
    """Returns the height and width of the last upsampler's images.

    Args:
      size: height and width of the images before upsampling.

    Raises:
      UserError: an upsampler requires images of another size, or is not an upsampler.
    """
    for name in (name for name in UPSAMPLERS if name in stages):
        model = stages[name].model
        input_size = model.required_inputs.get("low_res_image")
        if input_size is None:
            raise UserError(f"{name}: is not an upsampler; its config must have conditions.low_res_image")
        if input_size != size:
            raise UserError(
                f"{name}: upsamples images of {input_size}x{input_size}, but the stage before it samples {size}x{size};"
                " use a stage with the same size"
            )
        size = model.output_size
    return size


def shared_text(models: Mapping[str, Model]) -> TextSpec | None:
    """Returns the length and vocabulary of the captions of all models. Raises UserError if they differ."""
    specs = {name: model.text for name, model in models.items() if model.text is not None}
    if len(set(specs.values())) > 1:
        listed = ", ".join(f"{name} {text.length} of {text.vocabulary}" for name, text in specs.items())
        raise UserError(
            f"stages must read captions of one length and vocabulary, not {listed} tokens; train them alike"
        )
    return next(iter(specs.values()), None)


def missing_stage_error(system: str, stage: str, config: str) -> UserError:
    """Returns the error for a missing stage, which the file `config` trains."""
    return UserError(
        f"{stage}='': {system} requires this stage; train it with `python launch.py train --config=configs/{config}.py "
        f"--workdir=RUN` and set --config.{stage}=RUN, or add it to `parts`"
    )
