"""From latents to codes and back: codebooks that are learned, and finite scalars.

Shapes: B batch, h and w positions, D channels of a latent, n codes a position, K values a code has.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from diffjax.latents import codebook
from diffjax.latents.codebook import Books, Memory
from diffjax.typing import Latents, Moment, PRNGKey

Params = Mapping[str, Any]
Code = Int[Array, "B h w n"]


class Quantized(NamedTuple):
    """What a quantiser makes of a batch of latents."""

    vectors: Latents  # the codes' vectors; their gradient is passed to the latents: VQ-VAE, sec. 3.2
    codes: Code
    commitment: Float[Array, "B"]  # |z - sg(e)|^2, mean over positions and channels: pulls the encoder to the codes
    codebook: Float[Array, "B"]  # |sg(z) - e|^2: pulls the codes to the encoder; zero where that is not how they learn
    inputs: Float[Array, "n B h w d"] | None  # what each codebook had to quantise


@dataclasses.dataclass(frozen=True)
class Quantizer(abc.ABC):
    """Maps latents to the nearest of finitely many vectors.

    `params` are learned by gradients, `memory` is what else is remembered from step to step.
    """

    channels: int  # D
    vocabulary: int  # K
    depth: int  # n

    @abc.abstractmethod
    def init(self, key: PRNGKey) -> tuple[Params, Memory]:
        """Fresh params and memory."""

    @abc.abstractmethod
    def quantize(self, params: Params, memory: Memory, z: Latents) -> Quantized:
        """The nearest codes of `z`."""

    @abc.abstractmethod
    def lookup(self, params: Params, memory: Memory, codes: Code) -> Latents:
        """The vectors of `codes`."""

    def fit(self, params: Params, memory: Memory, z: Latents) -> tuple[Params, Memory]:
        """Params and memory that a fresh run begins with, fitted to latents of its first batch."""
        return params, memory

    @abc.abstractmethod
    def learn(
        self, params: Params, memory: Memory, found: Quantized, index: Int[Array, "B"], moment: Moment
    ) -> tuple[Memory, dict[str, Array]]:
        """Returns the memory after a step, linear in averages over the batch, and metrics such as restarts."""


@dataclasses.dataclass(frozen=True)
class VectorQuantizer(Quantizer):
    """Codebooks of vectors: VQ-VAE (van den Oord et al. 2017); residual or product ones where `depth` > 1.

    Attributes:
      split: with `depth` > 1, whether each codebook has a part of the channels (a product, as in product quantisation),
        or quantises the residual of those before it (Zeghidour et al. 2021, SoundStream, algorithm 1).
      shared: one codebook quantises every residual (RQ-VAE: Lee et al. 2022, sec. 3.1), not one per depth.
      ema: whether codes move to the running mean of what they stand for (VQ-VAE, app. A.1), or by the codebook loss.
      decay: of the running means.
      cosine: whether latents and codes have length one (ViT-VQGAN: Yu et al. 2022, sec. 3.2).
      restart_below: a code that stands for less than this share of what it would if all were used alike is given a
        latent of the batch (Jukebox: Dhariwal et al. 2020, app. B); 0: never.
      initial: "normal" | "data" (latents of the first batch) | "kmeans" (their centres).
    """

    split: bool = False
    shared: bool = False
    ema: bool = True
    decay: float = 0.99
    cosine: bool = False
    restart_below: float = 0.0
    initial: str = "normal"

    def init(self, key):
        width = self.channels // self.depth if self.split else self.channels
        books = jax.random.normal(key, (1 if self.shared else self.depth, self.vocabulary, width))
        memory = codebook.init(books, ema=self.ema)
        return ({} if self.ema else {"books": books}), memory

    def _learned(self, params: Params, memory: Memory) -> Books:
        return codebook.means(memory) if self.ema else params["books"] + memory["shift"]

    def _books(self, params: Params, memory: Memory) -> Books:
        """Returns a codebook for each depth."""
        books = self._learned(params, memory)
        books = codebook.normalized(books) if self.cosine else books
        return jnp.broadcast_to(books, (self.depth, *books.shape[1:])) if self.shared else books

    def quantize(self, params, memory, z):
        books = self._books(params, memory)
        fixed = lax.stop_gradient(books)
        parts = self._parts(z)
        vectors, codes, inputs, commitment, learning = [], [], [], 0.0, 0.0
        left = parts[0]
        for i in range(self.depth):
            asked = parts[i] if self.split else left
            code = codebook.nearest(lax.stop_gradient(asked), fixed[i])
            vector = books[i][code]
            codes.append(code)
            inputs.append(lax.stop_gradient(asked))
            commitment += _mean_square(asked - lax.stop_gradient(vector)) / self.depth
            learning += 0.0 if self.ema else _mean_square(lax.stop_gradient(asked) - vector) / self.depth
            vectors.append(lax.stop_gradient(vector))
            left = left if self.split else left - vectors[-1]
        whole = jnp.concatenate(vectors, axis=-1) if self.split else sum(vectors)
        z = jnp.concatenate(parts, axis=-1) if self.split else parts[0]
        return Quantized(
            vectors=z + lax.stop_gradient(whole - z),
            codes=jnp.stack(codes, axis=-1),
            commitment=commitment,
            codebook=learning + jnp.zeros(z.shape[0]),
            inputs=jnp.stack(inputs),
        )

    def _parts(self, z: Latents) -> list[Latents]:
        """What the codebooks are asked to quantise: parts of the channels, or all of them."""
        parts = jnp.split(z, self.depth, axis=-1) if self.split else [z]
        return [codebook.normalized(part) for part in parts] if self.cosine else parts

    def lookup(self, params, memory, codes):
        books = self._books(params, memory)
        vectors = [books[i][codes[..., i]] for i in range(self.depth)]
        return jnp.concatenate(vectors, axis=-1) if self.split else sum(vectors)

    def fit(self, params, memory, z):
        if self.initial == "normal":
            return params, memory
        books, rng = [], np.random.default_rng(0)
        parts = [np.asarray(part).reshape(-1, part.shape[-1]) for part in self._parts(z)]
        left = parts[0]
        for i in range(1 if self.shared else self.depth):
            asked = parts[i] if self.split else left
            books.append(codebook.from_data(rng, asked, self.vocabulary, centres=self.initial == "kmeans"))
            left = left if self.split else left - books[-1][np.asarray(codebook.nearest(left, books[-1]))]
        books = jnp.asarray(np.stack(books))
        return ({} if self.ema else {"books": books}), codebook.init(books, ema=self.ema)

    def learn(self, params, memory, found, index, moment):
        inputs, codes = found.inputs, found.codes
        if self.shared:  # the residuals of all depths are latents of one codebook
            inputs = jnp.moveaxis(inputs, 0, -2)[None]  # [1, B, h, w, depth, d]
            codes = codes[..., None]  # [B, h, w, depth, 1]
        dead = memory["counts"] < self.restart_below / self.vocabulary
        lively = codebook.moved(memory, inputs, codes, decay=self.decay)
        if self.restart_below:
            fresh = codebook.candidates(inputs, self.vocabulary, index, moment)
            lively = codebook.restarted(lively, dead, fresh, lax.stop_gradient(self._learned(params, memory)))
        seen = codebook.seen(memory, codes, moment)
        restarts = dead.sum() * 1.0
        return {**lively, "seen": seen}, {"restarts": restarts}


@dataclasses.dataclass(frozen=True)
class FiniteScalars(Quantizer):
    """Every channel rounded to one of a few levels: FSQ (Mentzer et al. 2024). Nothing to learn, nothing to collapse.

    There are prod(levels) codes; a code's vector has its channels' levels scaled to [-1, 1].
    """

    levels: tuple[int, ...] = ()

    def init(self, key):
        return {}, {"seen": jnp.zeros((1, self.vocabulary))}

    @property
    def _half(self) -> np.ndarray:
        return np.array([level // 2 for level in self.levels], np.float32)

    @property
    def _basis(self) -> np.ndarray:
        return np.cumprod([1, *self.levels[:-1]])

    def _rounded(self, z: Latents) -> Array:
        """Whole numbers from -(levels // 2) up: ibid., app. A.1. An even number of levels is shifted by a half."""
        levels = np.array(self.levels, np.float32)
        reach = (levels - 1) * (1 - 1e-3) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0).astype(np.float32)
        shift = np.tan(offset / reach).astype(np.float32)
        bounded = jnp.tanh(z + shift[None, None, None]) * reach[None, None, None] - offset[None, None, None]
        return bounded + lax.stop_gradient(jnp.round(bounded) - bounded)

    def quantize(self, params, memory, z):
        rounded = self._rounded(z)
        digits = jnp.round(rounded + self._half[None, None, None]).astype(jnp.int32)
        codes = jnp.sum(digits * self._basis[None, None, None], axis=-1, keepdims=True)
        nothing = jnp.zeros(z.shape[0])
        return Quantized(rounded / self._half[None, None, None], codes, nothing, nothing, None)

    def lookup(self, params, memory, codes):
        digits = codes // self._basis[None, None, None] % np.array(self.levels)[None, None, None]
        half = self._half[None, None, None]
        return (digits - half) / half

    def learn(self, params, memory, found, index, moment):
        return {"seen": codebook.seen(memory, found.codes, moment)}, {}


def _mean_square(x: Latents) -> Float[Array, "B"]:
    return (x**2).reshape(x.shape[0], -1).mean(axis=-1)
