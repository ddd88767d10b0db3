"""Abstract base classes of models: what every model has, and one class for each capability.

A model is a frozen dataclass of networks and settings. Its methods take all variables and random keys as arguments, so
that they can be compiled, differentiated and mapped. What a model can do is its classes: test with `isinstance`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
from jaxtyping import Array, Float

from diffjax.diffusion.noise import Noise
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.models.observation import Observer
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.typing import (
    Batch,
    Clip,
    Codec,
    Embeddings,
    Images,
    LossFn,
    PRNGKey,
    PRNGKeys,
    Scalar,
    TextSpec,
    Tokens,
    Variables,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(abc.ABC):
    """A model of a config.

    Attributes:
      classes: number of classes that samples are conditioned on, or that a classifier distinguishes; 0: none.
      text: length and vocabulary of captions, for models that read them: their batches have "tokens".
      reads_number: whether it is conditioned on a number per image: its batches have "number".
      frozen: variables of trained parts that the model uses and does not train, by name. Callers add them to the
        variables of `init` under "frozen".
    """

    classes: int = 0
    text: TextSpec | None = None
    reads_number: bool = False
    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    note: ClassVar[str] = ""  # printed when training starts
    # groups of parameters, and mutable collections, that only training needs; exports do not have them
    training_only: ClassVar[Sequence[str]] = ()

    @abc.abstractmethod
    def init(self, key: PRNGKey) -> Variables:
        """Returns fresh variables: "params" by group, and mutable collections. Consumes `key`."""

    @functools.cached_property
    def variable_shapes(self) -> Variables:
        """Shapes of the variables of `init`, traced once.

        Raises:
          ValueError: the shapes of networks do not fit.
        """
        return jax.eval_shape(self.init, jax.random.key(0))

    @property
    @abc.abstractmethod
    def losses(self) -> Mapping[str, LossFn]:
        """Loss of each group of parameters, per example; empty for a pipeline, which trains nothing."""

    @property
    def fits_first_batch(self) -> bool:
        """True if `prepare` must be called before the first step."""
        return False

    @property
    def group_size(self) -> int:
        """Number of consecutive examples that a loss compares with each other, which batches do not split."""
        return 1

    def prepare(self, variables: Variables, batch: Batch) -> Variables:
        """Returns fresh variables fitted to the first batch, such as a codebook initialised with its latents."""
        return variables

    def complete(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns weights of another model by path, with zeros for inputs of the network that only this model has."""
        return weights

    def constrain(self, params: Any) -> Any:
        """Returns the updated parameters of a group with the constraints of the model, such as weights of unit norm."""
        return params

    def summarize(self, collections: Mapping[str, Any]) -> Mapping[str, Scalar]:
        """Returns metrics that are not means over examples, from mutable collections averaged over devices."""
        return {}

    def warn(self, metrics: Mapping[str, float]) -> str | None:
        """Returns a one-line warning about the metrics of a step, or None."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerativeModel(Model):
    """A model that samples images [-1, 1], or embeddings.

    Attributes:
      output_size: height and width of the images, or dimension of the embeddings.
      outputs_embeddings: whether samples are embeddings [B, D] rather than images.
      required_inputs: inputs besides labels and captions, with their sizes: the dimension of an "image_embedding", the
        side of a "low_res_image". Conditions have them, or "original", the images [-1, 1] to compute them from.
    """

    output_size: int = 0
    outputs_embeddings: bool = False
    required_inputs: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @abc.abstractmethod
    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        """Returns sampling settings.

        Args:
          sampler_config: the config's `sampler` section.
          capacity: number of steps to pad time grids to, so that fewer steps share the compilation.
          overrides: settings in the place of the section's.

        Raises:
          UserError: an unknown setting, or one that does not fit the model.
        """

    def notes(self, settings: SamplingSettings) -> Iterable[str]:
        """Returns lines about settings that samples are possible with, but that the model was not trained for."""
        return ()

    @abc.abstractmethod
    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Array:
        """Samples one output per key, independent of the batch that a key is in.

        Args:
          conditions: arrays [B, ...] by name: "label", "tokens", and required inputs; also a "number", in the place of
            that of the settings.
          observer: receives the steps of diffusion models, also in a pipeline; models without steps ignore it.

        Returns:
          Images [B, H, W, C] in [-1, 1], or embeddings [B, D].
        """


class Autoencoder(Model):
    """A model that encodes images to latents and decodes them.

    Attributes:
      outputs_embeddings: whether its latents decode to embeddings [B, D] rather than images.
      output_size: dimension of those embeddings.
    """

    outputs_embeddings: bool = False
    output_size: int = 0

    @abc.abstractmethod
    def codec(self, variables: Variables) -> Codec:
        """Returns the encoder and decoder bound to variables."""


class LikelihoodModel(Model):
    """A model with a likelihood or a bound of it, in one forward pass."""

    @abc.abstractmethod
    def likelihood(self, variables: Variables, keys: PRNGKeys, batch: Batch) -> Mapping[str, Float[Array, " B"]]:
        """Returns bits per dimension per example, by name of the value or bound."""


class Classifier(Model):
    """A classifier of noised images, for classifier guidance."""

    @abc.abstractmethod
    def classify(self, variables: Variables, x: Array, noise: Noise) -> Float[Array, "B K"]:
        """Returns logits of the classes for noised images `x` [B, ...] at noise levels `noise`."""

    @abc.abstractmethod
    def features(self, variables: Variables, images: Images) -> Float[Array, "B F"]:
        """Returns the last features before the pooling of images in [-1, 1], averaged over positions.

        The time is that of the lowest noise level, and no noise is added.
        """


class ContrastiveModel(Model):
    """A CLIP: embeds images and captions in one space.

    Attributes:
      accepts_any_size: whether it embeds images of any size, or none.
    """

    accepts_any_size: bool = False

    @property
    def noise_schedule(self) -> Schedule | None:
        """Noise schedule of the images that it was trained on; None: clean images."""
        return None

    @abc.abstractmethod
    def clip(self, variables: Variables) -> Clip:
        """Returns the image and text encoders bound to variables."""


class ImageManipulation(GenerativeModel):
    """Manipulations of images through their CLIP embeddings: Ramesh et al. 2022, section 3."""

    @abc.abstractmethod
    def embed(self, variables: Variables, images: Images) -> Embeddings:
        """Returns the CLIP embeddings of images."""

    @abc.abstractmethod
    def embed_texts(self, variables: Variables, tokens: Tokens) -> Embeddings:
        """Returns the CLIP embeddings of captions."""

    @abc.abstractmethod
    def invert(
        self, variables: Variables, images: Images, conditions: Mapping[str, Array], settings: SamplingSettings
    ) -> Array:
        """Returns the decoder's x_T for images, by DDIM inversion."""

    @property
    @abc.abstractmethod
    def project(self) -> Callable[[Variables, Embeddings, Array], Embeddings] | None:
        """(variables, embeddings, k) -> projections on the first k principal components; None without PCA."""


class TrainedStage(NamedTuple):
    """A trained model, as a stage of a pipeline.

    Attributes:
      variables: its variables, or their shapes.
      sampler_config: the `sampler` section of its own config.
    """

    model: Any
    variables: Variables
    sampler_config: Mapping[str, Any] = {}

    def make_settings(self, capacity: int | None = None, **overrides: Any) -> SamplingSettings:
        """Returns sampling settings: those of the stage's own config, with overrides."""
        return self.model.make_settings(self.sampler_config, capacity, **overrides)


def abstract_value(bind: Callable[[Variables], Any], variables: Variables) -> Any:
    """Returns the `Codec` or `Clip` that `bind` makes of variables or their shapes, without computing anything.

    Only its static fields, such as shapes, can be used.
    """
    values = []
    jax.eval_shape(lambda variables: values.append(bind(variables)) or 0, variables)
    return values[0]
