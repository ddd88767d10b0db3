"""Array types with their shapes, and the types shared between packages.

Dimensions: B batch, H height, W width, C channels, L tokens per text, D values per embedding. Images are uint8 in
[0, 255] on the host and float32 in [-1, 1] on the device.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Float, Int, Key, UInt8

Scalar = Float[Array, ""]
PRNGKey = Key[Array, ""]
PRNGKeys = Key[Array, "B"]  # one key per example: results do not depend on the batch
Images = Float[Array, "B H W C"]
Images8 = UInt8[Array, "B H W C"]
Times = Float[Array, "B"]
Labels = Int[Array, "B"]
Tokens = Int[Array, "B L"]  # token ids per text: start, pieces, end, then NO_TOKEN (data/tokenizer.py)
NO_TOKEN = -1  # padding value of Tokens
Embeddings = Float[Array, "B D"]

Latents = Float[Array, "B h w c"]
Codes = tuple[Int[Array, "B h w n"], ...]  # per level, coarsest first: token of each position, n codebooks per position

# "image" Images8, or stored "latent" Latents, or "noise" and "x0" of stored pairs; "label" Labels, "tokens" Tokens for
# text-conditioned models, with stored "text_states" and "text_embedding" of a CLIP if there are any, "index" Int[B]:
# positions in the global batch
Batch = Mapping[str, Array]
# {"params": {group: tree}, mutable collections by name, optionally "frozen": {part: variables of the trained part}, and
# in a training step "ema": the moving average of "params"}
Variables = Mapping[str, Any]


class ImageSpec(NamedTuple):
    """Properties of a data set that a system requires before the data set is opened."""

    size: int  # height and width in pixels
    channels: int  # colour channels, with alpha if present
    classes: int  # number of classes; 0: no labels


class Aux(NamedTuple):
    """Auxiliary outputs of a loss."""

    metrics: Mapping[str, Float[Array, " B"]]  # logged means over examples, by name
    variables: Mapping[str, Any] = {}  # new values of mutable collections, averaged over devices


class StepContext(NamedTuple):
    """Inputs of a loss that are equal for all examples of a training step."""

    step: Scalar  # int32: number of updates so far
    key: PRNGKey  # random key of the step; the key of an example is folded from it
    batch_size: int  # over all devices and accumulated parts
    new_epoch: Array  # bool: whether an epoch starts with this step
    mean: Callable[[Any], Any]  # tree of averages over the local examples -> averages over those of all devices
    gather: Callable[[Any], Any]  # tree of local [B, ...] -> of all devices' examples, in order


LossFn = Callable[[Variables, Batch, PRNGKeys, StepContext], tuple[Float[Array, " B"], Aux]]


class Codec(NamedTuple):
    """Trained autoencoder, bound to its parameters."""

    encode: Callable[[Images], Latents]  # deterministic, multiplied by `scale`
    decode: Callable[[Latents], Images]  # the inverse of `encode`, approximately
    shape: tuple[int, int, int]  # latent height, width and channels
    scale: Scalar  # factor for unit variance of the latents of training images
    to_codes: Callable[[Images], Codes] | None = None  # None: continuous latents
    from_codes: Callable[[Codes], Images] | None = None  # None: continuous latents
    grids: tuple[tuple[int, int, int], ...] = ()  # height, width and codebooks per level of tokens
    vocabulary: int = 0  # number of token ids; 0: continuous latents
    # (image embeddings, text embeddings) -> quantile of their cosine similarity among training pairs, in [0, 1]
    agreement: Callable[[Embeddings, Embeddings], Float[Array, " B"]] | None = None


class TextSpec(NamedTuple):
    """Tokens that a text-conditioned system requires."""

    length: int  # tokens per text: longer texts are truncated, shorter ones padded
    vocabulary: int  # number of token ids


class Clip(NamedTuple):
    """Trained CLIP, bound to its parameters."""

    embed_images: Callable[[Images], Embeddings]  # unit length; raises UserError without an image encoder
    embed_texts: Callable[[Tokens], Embeddings]  # unit length; raises UserError without a text encoder
    text_states: Callable[[Tokens], Float[Array, "B L W"]]  # per token, after the text encoder's final norm
    scale: Scalar  # factor of the logits on the dot product of embeddings
    dimensions: int  # values per embedding
    width: int  # values per text state; 0 without a text encoder
    text: TextSpec | None  # required tokens; None without a text encoder
    embed_noised: Callable[..., Embeddings] | None = (
        None  # (x, Noise) -> embeddings of noised images; None: not trained on noise
    )
    project_images: Callable[[Images], Embeddings] | None = None  # embed_images before it scales to unit length
    project_texts: Callable[[Tokens], Embeddings] | None = None  # embed_texts before it scales to unit length
    image_features: Callable[[Images], Float[Array, "B h w D"]] | None = None  # tokens of patches, or feature maps
