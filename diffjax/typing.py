"""Array aliases with their shapes, and the few types that one room hands another.

Shapes: B batch, H height, W width, C channels, L tokens of a text, D values of an embedding. Images are uint8 [0, 255]
until they are on the device and float32 [-1, 1] from then on.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Float, Int, Key, UInt8

Scalar = Float[Array, ""]
PRNGKey = Key[Array, ""]
PRNGKeys = Key[Array, "B"]  # one key an example, so that nothing depends on the batch it stands in
Images = Float[Array, "B H W C"]
Images8 = UInt8[Array, "B H W C"]
Times = Float[Array, "B"]
Labels = Int[Array, "B"]
Tokens = Int[Array, "B L"]  # a text as `data/tokenizer.py` writes it: start, pieces, end, and NO_TOKEN from there on
NO_TOKEN = -1
Embeddings = Float[Array, "B D"]

Latents = Float[Array, "B h w c"]
Codes = tuple[Int[Array, "B h w n"], ...]  # of each level of a codebook, coarsest first; n codes a position

# "image" Images8, "label" Labels, "tokens" Tokens where the system reads text, and "index" Int[B]: the example's place
# in the global batch
Batch = Mapping[str, Array]
# {"params": {group: tree}, any mutable collection beside it, "frozen": {part: its variables} where a system has any}
Variables = Mapping[str, Any]


class ImageSpec(NamedTuple):
    """What a system must know of a data set before it is opened."""

    size: int  # height and width
    channels: int
    classes: int  # 0: no labels


class Aux(NamedTuple):
    """What a loss gives beside its value."""

    metrics: Mapping[str, Float[Array, "B"]]  # logged, averaged over the batch: only what is a mean over examples
    variables: Mapping[str, Any] = {}  # new values of mutable collections, averaged over the devices


class Moment(NamedTuple):
    """What all examples of a training step have in common."""

    step: Scalar  # int32: updates made so far
    key: PRNGKey  # the step's; that of an example is folded from it
    batch_size: int  # over all devices and parts
    new_epoch: Array  # bool: whether the data set begins anew with this step
    mean: Callable[[Any], Any]  # a tree of averages over the examples at hand -> over those of all devices
    gather: Callable[[Any], Any]  # a tree of [B, ...] of the examples at hand -> of those of all devices, in order


LossFn = Callable[[Variables, Batch, PRNGKeys, Moment], tuple[Float[Array, "B"], Aux]]


class Objective(NamedTuple):
    """What training needs of a system."""

    init: Callable[[PRNGKey], Variables]
    losses: Mapping[str, LossFn]  # one a group of parameters, unreduced: only the training step averages
    prepare: Callable[[Variables, Batch], Variables] | None = None  # fits a fresh run's variables to its first batch
    # Metrics that are not means over examples, such as a perplexity: computed from the mutable collections once these
    # are averaged over devices and accumulated parts, and logged with those of the group "model".
    summarize: Callable[[Mapping[str, Any]], Mapping[str, Scalar]] | None = None
    warn: Callable[[Mapping[str, float]], str | None] = lambda metrics: None  # what is wrong with a step, in one line
    note: str = ""  # what a run's log says of it at the start


class Codec(NamedTuple):
    """A trained autoencoder, bound to its parameters."""

    encode: Callable[[Images], Latents]  # deterministic, times `scale`
    decode: Callable[[Latents], Images]
    shape: tuple[int, int, int]  # of a latent: h, w, c
    scale: Scalar  # that gives the latents of the training images unit variance
    to_codes: Callable[[Images], Codes] | None = None  # where latents are discrete
    from_codes: Callable[[Codes], Images] | None = None
    grids: tuple[tuple[int, int, int], ...] = ()  # h, w, n of each level of codes
    vocabulary: int = 0  # values a code has
    # of embeddings: how well those of pictures agree with those of texts, as the share of pairs that agree less
    agreement: Callable[[Embeddings, Embeddings], Float[Array, "B"]] | None = None


class TextSpec(NamedTuple):
    """What a system that reads text asks of its tokens."""

    length: int  # of every text: longer ones are cut, shorter ones padded
    vocabulary: int  # tokens are below it


class Clip(NamedTuple):
    """A trained CLIP, bound to its parameters."""

    embed_images: Callable[[Images], Embeddings]  # of unit length, as the next
    embed_texts: Callable[[Tokens], Embeddings]
    text_states: Callable[[Tokens], Float[Array, "B L W"]]  # of every token, behind the text encoder's last norm
    scale: Scalar  # of the logits, which are it times the embeddings' dot product
    dimensions: int  # of an embedding
    width: int  # of a state
    text: TextSpec
    embed_noised: Callable[..., Embeddings] | None = None  # (x, Noise): of noised ones, where trained so


class Manipulations(NamedTuple):
    """What unCLIP does to pictures through their CLIP embeddings, of unit length: Ramesh et al. 2022, section 3."""

    embed: Callable[[Variables, Images], Embeddings]
    embed_texts: Callable[[Variables, Tokens], Embeddings]
    invert: Callable[..., Array]  # (variables, images, {"image_embedding": ...}, plan) -> x_T of the decoder, by DDIM
    project: Callable[..., Embeddings] | None  # (variables, embeddings, k) -> on their first k principal components


class System(NamedTuple):
    """A system of the line, built from its config.

    `plan` runs on the host: it turns the config's `sampler` section (padded to `capacity` steps) into a pytree whose
    leaves are the traced inputs of `sample`, so that plans of one sampler share one compilation. What a kind of system
    does not do is None.
    """

    objective: Objective
    classes: int  # that samples are conditioned on, or that a classifier tells apart; 0: none
    plan: Callable[..., Any] | None = None  # (sampler_config, capacity=None, **overrides) -> Plan
    sample: Callable[..., Images] | None = None  # (variables, keys [B], condition {name: [B, ...]}, plan) -> [-1, 1]
    model: Callable[..., Any] | None = None  # (variables, condition) -> the diffusion model, bound to them
    classify: Callable[..., Array] | None = None  # (variables, x [B, ...], Noise) -> logits [B, K]
    codec: Callable[[Variables], Codec] | None = None
    clip: Callable[[Variables], Clip] | None = None
    text: TextSpec | None = None  # where it reads text: batches and conditions have "tokens"
    likelihood: Callable[..., Mapping[str, Array]] | None = None  # (variables, keys, batch) -> {name: bits/dim [B]}
    frozen: Mapping[str, Any] = {}  # variables of trained parts that it stands on; they are not trained further
    # What a stage of a chain takes beside what is asked for: the values of an "image_embedding", the side of a
    # "smaller_image". Conditions have them, or "original", the picture [-1, 1] that they are made of.
    takes: Mapping[str, int] = {}
    gives: int = 0  # side of the pictures, or values of the embeddings, that it draws, or guides the drawing of
    schedule: Callable[..., Any] | None = None  # of its noise
    embeds: bool = False  # whether those are embeddings [B, D], which nobody can look at
    stages: tuple[str, ...] = ()  # of a chain, whose settings are named STAGE:SETTING; it trains nothing itself
    manipulate: Manipulations | None = None
