"""Quantisers of latents: learned codebooks, finite scalars and bits.

Shapes: B batch, h and w positions, D channels of a latent, n codes per position, K values of a code.
"""

import abc
import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from diffjax.latents import codebook
from diffjax.latents.codebook import Books, CodebookState
from diffjax.typing import Latents, PRNGKey, StepContext

_TEMPERATURE = 0.01  # of the distribution of codes in the penalty of bits

Params = Mapping[str, Any]
Code = Int[Array, "B h w n"]


class Quantized(NamedTuple):
    """Quantised latents of a batch.

    Attributes:
      vectors: codebook entries, whose gradient passes to the latents, straight through (VQ-VAE, sec. 3.2) or rotated.
      codes: indices of the entries.
      commitment: |z - sg(e)|^2, mean over positions and channels; its gradient moves the encoder to the entries.
      codebook: |sg(z) - e|^2; its gradient moves the entries to the encoder. Zero where entries are not learned so.
      inputs: latents that each codebook quantised; None: no codebook.
    """

    vectors: Latents
    codes: Code
    commitment: Float[Array, " B"]
    codebook: Float[Array, " B"]
    inputs: Float[Array, "n B h w d"] | None


@dataclasses.dataclass(frozen=True)
class Quantizer(abc.ABC):
    """Maps latents to the nearest of finitely many vectors.

    `params` are learned by gradients. `state` is everything else that a step updates.

    Attributes:
      channels: D, channels of a latent.
      vocabulary: K, values of a code.
      depth: n, codes per position.
    """

    channels: int
    vocabulary: int
    depth: int

    @abc.abstractmethod
    def init(self, key: PRNGKey) -> tuple[Params, CodebookState]:
        """Returns initial params and state."""

    @abc.abstractmethod
    def quantize(self, params: Params, state: CodebookState, z: Latents) -> Quantized:
        """Returns the nearest codes of `z`."""

    @abc.abstractmethod
    def lookup(self, params: Params, state: CodebookState, codes: Code) -> Latents:
        """Returns the vectors of `codes`."""

    def fit(self, params: Params, state: CodebookState, z: Latents) -> tuple[Params, CodebookState]:
        """Returns params and state fitted to latents of the first batch, before training starts."""
        del z
        return params, state

    def penalty(self, z: Latents, context: StepContext) -> Float[Array, " B"]:
        """Returns a term of the loss besides the commitment and codebook loss, for latents of the batch."""
        del context
        return jnp.zeros(z.shape[0])

    @abc.abstractmethod
    def learn(
        self, params: Params, state: CodebookState, quantized: Quantized, index: Int[Array, " B"], context: StepContext
    ) -> tuple[CodebookState, dict[str, Array]]:
        """Updates the state by one step.

        Args:
          params: of the step.
          state: before the step.
          quantized: quantised latents of the batch.
          index: position of each example in the global batch.
          context: of the training step.

        Returns:
          The new state, linear in averages over the batch, and metrics such as "restarts".
        """


@dataclasses.dataclass(frozen=True)
class VectorQuantizer(Quantizer):
    """Codebooks of vectors: VQ-VAE (van den Oord et al. 2017); residual or product quantisation where `depth` > 1.

    Attributes:
      split: with `depth` > 1, whether each codebook quantises a part of the channels (product quantisation), or the
        residual of the codebooks before it (Zeghidour et al. 2021, SoundStream, algorithm 1).
      shared: whether one codebook quantises every residual (RQ-VAE: Lee et al. 2022, sec. 3.1).
      update_rule: "ema": entries follow the running mean of their latents (VQ-VAE, app. A.1). "gradient": the codebook
        loss moves those in use. "linear": it learns a linear map of fixed entries, so that all of them move (SimVQ:
        Zhu et al. 2024, "Addressing representation collapse in vector quantized models with one linear layer").
      decay: of the running means.
      rotate: whether the gradient of the vectors reaches the latents by the rotation and scaling from latent to vector
        (Fifty et al. 2024, "Restructuring vector quantization with the rotation trick", sec. 4), or unchanged.
      cosine: whether latents and entries have length one (ViT-VQGAN: Yu et al. 2022, sec. 3.2).
      dead_code_threshold: an entry with less than this multiple of the mean usage restarts at a latent of the batch
        (Jukebox: Dhariwal et al. 2020, app. B); 0: never.
      initial: initial entries: "normal" | "data" (latents of the first batch) | "kmeans" (their centres).
    """

    split: bool = False
    shared: bool = False
    update_rule: str = "ema"
    rotate: bool = False
    decay: float = 0.99
    cosine: bool = False
    dead_code_threshold: float = 0.0
    initial: str = "normal"

    def init(self, key):
        width = self.channels // self.depth if self.split else self.channels
        books = jax.random.normal(key, (1 if self.shared else self.depth, self.vocabulary, width))
        return self._with_entries(books * width**-0.5 if self.update_rule == "linear" else books)

    def _with_entries(self, books: Books) -> tuple[Params, CodebookState]:
        """Returns the params and state of the entries `books`, all used alike."""
        if self.update_rule == "linear":
            maps = jnp.broadcast_to(jnp.eye(books.shape[-1]), (books.shape[0], *[books.shape[-1]] * 2))
            return {"map": maps}, codebook.init(books, kind="fixed")
        is_ema = self.update_rule == "ema"
        return ({} if is_ema else {"books": books}), codebook.init(books, kind="sums" if is_ema else "shift")

    def _entries(self, params: Params, state: CodebookState) -> Books:
        if self.update_rule == "linear":
            return state["fixed"] @ params["map"]
        return codebook.means(state) if self.update_rule == "ema" else params["books"] + state["shift"]

    def _books(self, params: Params, state: CodebookState) -> Books:
        """Returns a codebook for each depth."""
        books = self._entries(params, state)
        books = codebook.unit_length(books) if self.cosine else books
        return jnp.broadcast_to(books, (self.depth, *books.shape[1:])) if self.shared else books

    def quantize(self, params, state, z):
        books = self._books(params, state)
        fixed = lax.stop_gradient(books)
        parts = self._parts(z)
        vectors, codes, inputs = [], [], []
        commitment, codebook_loss = jnp.zeros(z.shape[0], z.dtype), jnp.zeros(z.shape[0])
        residual = parts[0]
        for i in range(self.depth):
            target = parts[i] if self.split else residual
            code = codebook.nearest(lax.stop_gradient(target), fixed[i])
            vector = books[i][code]
            codes.append(code)
            inputs.append(lax.stop_gradient(target))
            commitment += _mean_square(target - lax.stop_gradient(vector)) / self.depth
            if self.update_rule != "ema":
                codebook_loss += _mean_square(lax.stop_gradient(target) - vector) / self.depth
            vectors.append(lax.stop_gradient(vector))
            if not self.split:
                residual = residual - vectors[-1]
        pairs = zip(parts, vectors, strict=True) if self.split else [(parts[0], self._joined(vectors))]
        passed = [(_rotated if self.rotate else _straight_through)(*pair) for pair in pairs]
        return Quantized(
            vectors=jnp.concatenate(passed, axis=-1),
            codes=jnp.stack(codes, axis=-1),
            commitment=commitment,
            codebook=codebook_loss,
            inputs=jnp.stack(inputs),
        )

    def _parts(self, z: Latents) -> list[Latents]:
        """Returns the latents for each codebook: parts of the channels, or all of them."""
        parts = jnp.split(z, self.depth, axis=-1) if self.split else [z]
        return [codebook.unit_length(part) for part in parts] if self.cosine else parts

    def _joined(self, vectors: list[Latents]) -> Latents:
        """Joins the entries of all codebooks: concatenates parts of the channels, or sums residuals."""
        return jnp.concatenate(vectors, axis=-1) if self.split else functools.reduce(operator.add, vectors)

    def lookup(self, params, state, codes):
        books = self._books(params, state)
        vectors = [books[i][codes[..., i]] for i in range(self.depth)]
        return self._joined(vectors)

    def fit(self, params, state, z):
        if self.initial == "normal":
            return params, state
        books, rng = [], np.random.default_rng(0)
        parts = [np.asarray(part).reshape(-1, part.shape[-1]) for part in self._parts(z)]
        residual = parts[0]
        for i in range(1 if self.shared else self.depth):
            target = parts[i] if self.split else residual
            books.append(codebook.from_data(rng, target, self.vocabulary, centres=self.initial == "kmeans"))
            if not self.split:
                residual = residual - books[-1][np.asarray(codebook.nearest(residual, books[-1]))]
        return self._with_entries(jnp.asarray(np.stack(books)))

    def learn(self, params, state, quantized, index, context):
        inputs, codes = quantized.inputs, quantized.codes
        assert inputs is not None
        if self.shared:  # the residuals of all depths are latents of one codebook
            inputs = jnp.moveaxis(inputs, 0, -2)[None]  # [1, B, h, w, depth, d]
            codes = codes[..., None]  # [B, h, w, depth, 1]
        dead = state["counts"] < self.dead_code_threshold / self.vocabulary
        updated = codebook.ema_update(state, inputs, codes, decay=self.decay)
        if self.dead_code_threshold:
            fresh = codebook.restart_candidates(inputs, self.vocabulary, index, context)
            updated = codebook.restart_dead_codes(updated, dead, fresh, lax.stop_gradient(self._entries(params, state)))
        return {**updated, "usage": codebook.usage(state, codes, context)}, {"restarts": dead.sum() * 1.0}


class _FixedCodes(Quantizer):
    """Codes without parameters, of which the state counts the usage."""

    def init(self, key):
        return {}, {"usage": jnp.zeros((1, self.vocabulary))}

    def learn(self, params, state, quantized, index, context):
        return {"usage": codebook.usage(state, quantized.codes, context)}, {}


@dataclasses.dataclass(frozen=True)
class FiniteScalars(_FixedCodes):
    """Rounds every channel to one of a few levels, without parameters: FSQ (Mentzer et al. 2024).

    The vector of a code has the levels of its channels, scaled to [-1, 1].

    Attributes:
      levels: number of levels of each channel; their product is the vocabulary.
    """

    levels: tuple[int, ...] = ()

    @property
    def _half(self) -> np.ndarray:
        return np.array([level // 2 for level in self.levels], np.float32)

    @property
    def _basis(self) -> np.ndarray:
        return np.cumprod([1, *self.levels[:-1]])

    def _rounded(self, z: Latents) -> Array:
        """Rounds to integers from -(levels // 2) up, with straight-through gradient.

        An even number of levels has an offset of 1/2.

        Reference: FSQ, app. A.1.
        """
        levels = np.array(self.levels, np.float32)
        reach = (levels - 1) * (1 - 1e-3) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0).astype(np.float32)
        shift = np.tan(offset / reach).astype(np.float32)
        bounded = jnp.tanh(z + shift[None, None, None]) * reach[None, None, None] - offset[None, None, None]
        return bounded + lax.stop_gradient(jnp.round(bounded) - bounded)

    def quantize(self, params, state, z):
        rounded = self._rounded(z)
        digits = jnp.round(rounded + self._half[None, None, None]).astype(jnp.int32)
        codes = jnp.sum(digits * self._basis[None, None, None], axis=-1, keepdims=True)
        zero = jnp.zeros(z.shape[0])
        return Quantized(rounded / self._half[None, None, None], codes, zero, zero, None)

    def lookup(self, params, state, codes):
        digits = codes // self._basis[None, None, None] % np.array(self.levels)[None, None, None]
        half = self._half[None, None, None]
        return (digits - half) / half


@dataclasses.dataclass(frozen=True)
class Bits(_FixedCodes):
    """The signs of the channels, without parameters: lookup-free quantisation (LFQ, Yu et al. 2024, MAGVIT-v2).

    The vector of a code has 1 and -1. A penalty makes the bits of a latent certain and the codes of a batch diverse.

    Attributes:
      entropy_weight: weight of the penalty.
    """

    entropy_weight: float = 0.1

    @property
    def _basis(self) -> np.ndarray:
        return 2 ** np.arange(self.channels)

    def quantize(self, params, state, z):
        signs = jnp.where(z > 0, 1.0, -1.0)
        codes = jnp.sum((z > 0) * self._basis[None, None, None], axis=-1, keepdims=True)
        commitment = _mean_square(z - signs)
        return Quantized(_straight_through(z, signs), codes, commitment, jnp.zeros(z.shape[0]), None)

    def lookup(self, params, state, codes):
        return 2.0 * (codes // self._basis[None, None, None] % 2) - 1.0

    def penalty(self, z, context):
        """Returns the weighted entropy of the codes of each latent, minus that of the mean over the batch, in nats.

        The probability of a code is proportional to exp(-|z - c|^2 / 0.01), as in public code, so bits are independent.

        Reference: MAGVIT-v2, eq. 5.
        """
        logits = 4.0 / _TEMPERATURE * z.reshape(z.shape[0], -1, self.channels)
        ones, zeros = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
        entropy = -jnp.sum(ones * jax.nn.log_sigmoid(logits) + zeros * jax.nn.log_sigmoid(-logits), axis=-1)
        codes = jnp.ones((*ones.shape[:2], 1))
        for i in range(self.channels):
            codes = jnp.concatenate([codes * zeros[..., i, None], codes * ones[..., i, None]], axis=-1)
        mean = context.mean(codes.mean((0, 1)))
        diversity = -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-12)))
        return self.entropy_weight * (entropy.mean(axis=1) - diversity)


def _straight_through(z: Latents, vector: Latents) -> Latents:
    """Returns `vector`, whose gradient is passed to `z` unchanged."""
    return z + lax.stop_gradient(vector - z)


def _rotated(z: Latents, vector: Latents) -> Latents:
    """Returns `vector` as a rotation and scaling of `z`, both without gradient.

    The rotation by the angle between both, in their plane, is a product of two reflections.

    Reference: Fifty et al. 2024, sec. 4.2.
    """
    fixed, vector = lax.stop_gradient((z, vector))
    start, end = codebook.unit_length(fixed), codebook.unit_length(vector)
    middle = codebook.unit_length(start + end)
    along = lambda direction: jnp.sum(z * direction, axis=-1, keepdims=True)  # noqa: E731
    turned = z - 2.0 * along(middle) * middle + 2.0 * along(start) * end
    turned = codebook.length(vector) / codebook.length(fixed) * turned
    return turned + lax.stop_gradient(vector - turned)  # the value, exactly


def _mean_square(x: Latents) -> Float[Array, " B"]:
    return (x**2).reshape(x.shape[0], -1).mean(axis=-1)
