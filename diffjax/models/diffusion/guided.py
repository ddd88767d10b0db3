"""A diffusion model guided by other trained models."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

from jaxtyping import Array

from diffjax.models.base import Classifier, ContrastiveModel, GenerativeModel
from diffjax.models.diffusion.bound_model import Guides
from diffjax.models.diffusion.model import DiffusionModel, condition_keys, with_settings
from diffjax.models.observation import Observer
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.typing import LossFn, PRNGKey, PRNGKeys, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidedModel(GenerativeModel):
    """A diffusion model, sampled with guidance by other models: see diffusion/guidance.py.

    Its variables are those of each model: "model", "classifier", "weak", "noised_clip".

    Attributes:
      model: the guided model.
      classifier: guides to class labels.
      weak: weaker model, to extrapolate from: autoguidance.
      noised_clip: CLIP of noised images; guides to captions.
    """

    model: DiffusionModel
    classifier: Classifier | None = None
    weak: DiffusionModel | None = None
    noised_clip: ContrastiveModel | None = None

    def init(self, key: PRNGKey) -> Variables:
        raise NotImplementedError("the models of a guided model are trained one by one")

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {}

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        return self.model.make_settings(sampler_config, capacity, **overrides)

    def notes(self, settings: SamplingSettings) -> Iterable[str]:
        return self.model.notes(settings)

    def bind(self, variables: Variables, *args: Any, **kwargs: Any):
        """Returns the model without guidance by other models, bound to its variables."""
        return self.model.bind(variables["model"], *args, **kwargs)

    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Array:
        conditions = with_settings(conditions, settings, len(keys))
        extra = condition_keys(keys), settings["augmentation"]
        clip = self.noised_clip.clip(variables["noised_clip"]) if self.noised_clip else None
        guides = Guides(
            classify=functools.partial(self.classifier.classify, variables["classifier"]) if self.classifier else None,
            weak=self.weak.bind(variables["weak"], conditions, *extra).denoiser if self.weak else None,
            embed_noised=clip.embed_noised if clip else None,
            text_embeddings=clip.embed_texts(conditions["tokens"]) if clip else None,
        )
        bound = self.model.bind(variables["model"], conditions, *extra)
        return bound.sample(keys, settings, conditions, guides, observer)


def guided(
    model: DiffusionModel,
    *,
    classifier: Classifier | None = None,
    weak: DiffusionModel | None = None,
    noised_clip: ContrastiveModel | None = None,
) -> GuidedModel:
    """Returns `model`, guided by other models."""
    return GuidedModel(
        model=model,
        classifier=classifier,
        weak=weak,
        noised_clip=noised_clip,
        classes=max(model.classes, classifier.classes if classifier else 0),
        text=model.text,
        reads_number=model.reads_number,
        frozen=model.frozen,
        required_inputs=model.required_inputs,
        output_size=model.output_size,
        outputs_embeddings=model.outputs_embeddings,
    )
