"""Codebooks of vectors: nearest entries, moving averages, restarts of dead entries, usage.

Codebooks are [n, K, d]: n codebooks of K entries with d channels. Every update takes means over the latents of a batch,
so that means over devices make it the update of the whole batch.
"""

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffjax.typing import StepContext

Books = Float[Array, "n K d"]

# What a codebook keeps from step to step.
#   "counts" [n, K]: running mean of the share of latents that each entry quantises
#   "usage" [n, K]: shares summed over the steps of the epoch
#   "sums" [n, K, d], with EMA updates: running mean of the sum of those latents, over the number of all latents
#   "shift" [n, K, d], with gradient updates: what restarts added to the parameters
#   "fixed" [n, K, d], with a learned linear map: entries before the map
CodebookState = dict[str, Array]

_MIN_COUNT = 1e-12  # an entry below it is not moved
_NO_EXAMPLE = 2**32 - 1  # folded into a step's key; no example has this index


def init(books: Books, *, kind: str) -> CodebookState:
    """Returns a state with the entries `books`, all used alike, of the kind "sums", "shift" or "fixed"."""
    count = jnp.full(books.shape[:2], 1.0 / books.shape[1])
    vectors = {"sums": books * count[..., None], "shift": jnp.zeros_like(books), "fixed": books}
    return {"counts": count, "usage": jnp.zeros_like(count), kind: vectors[kind]}


def means(state: CodebookState) -> Books:
    """Returns the entries of an EMA codebook: the running mean of the latents that each of them quantises.

    Reference: VQ-VAE (van den Oord et al. 2017), app. A.1, eq. 8.
    """
    return state["sums"] / state["counts"][..., None]


def length(x: Float[Array, "... d"]) -> Float[Array, "... 1"]:
    """Returns the lengths of vectors, at least 1e-6."""
    return jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12))


def unit_length(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Scales vectors to length one."""
    return x / length(x)


def nearest(z: Float[Array, "... d"], book: Float[Array, "K d"]) -> Int[Array, "..."]:
    """Returns the index of the entry with the least distance |z - e|^2.

    Computes |e|^2 - 2 z e after it subtracts the mean of the entries, in full float32: otherwise rounding exceeds the
    distances between entries for data far from zero, and for matrix products of reduced precision.

    Reference: VQ-VAE, eq. 1.
    """
    centre = book.mean(axis=0, keepdims=True)
    z, shape, book = z.reshape(-1, z.shape[-1]) - centre, z.shape[:-1], book - centre
    product = jnp.matmul(z, book.T, precision=lax.Precision.HIGHEST)
    distance = jnp.sum(book**2, axis=-1)[None, :] - 2 * product
    return jnp.argmin(distance, axis=-1).reshape(shape)


def ema_update(
    state: CodebookState, inputs: Float[Array, "n ... d"], codes: Int[Array, "... n"], *, decay: float
) -> CodebookState:
    """Moves counts, and sums where present, towards those of a batch.

    An unused entry keeps a count near `_MIN_COUNT`, so its vector does not move.

    Args:
      state: before the step.
      inputs: latents that each codebook quantised.
      codes: their entries.
      decay: of the moving averages, in [0, 1).

    Reference: VQ-VAE, app. A.1, eq. 6 and 7.
    """
    codes = _by_book(codes)
    inputs = inputs.reshape(*codes.shape, -1)
    size = state["counts"].shape[1]
    keep = jnp.where(state["counts"] < _MIN_COUNT, 1.0, decay)
    new = {**state, "counts": keep * state["counts"] + (1 - decay) * _shares(codes, size)}
    if "sums" in state:
        sums = jax.vmap(lambda x, code: jax.ops.segment_sum(x, code, size))(inputs, codes) / codes.shape[1]
        new["sums"] = keep[..., None] * state["sums"] + (1 - decay) * sums
    return new


def restart_candidates(
    inputs: Float[Array, "n B ... d"], size: int, index: Int[Array, " B"], context: StepContext
) -> Books:
    """Samples a latent of the whole batch for each entry, by the key of the step.

    Only the device with the sampled example returns the latent, times the number of devices; the others return zeros.
    The mean over devices is then the latent.

    Args:
      inputs: latents of this device's examples, for each codebook.
      size: K.
      index: position of each example in the global batch.
      context: of the training step.
    """
    inputs = inputs.reshape(*inputs.shape[:2], -1, inputs.shape[-1])  # [n, B, positions, d]
    books, local_size, positions, _ = inputs.shape
    example_key, position_key = jax.random.split(jax.random.fold_in(context.key, _NO_EXAMPLE))
    example = jax.random.randint(example_key, (books, size), 0, context.batch_size)
    position = jax.random.randint(position_key, (books, size), 0, positions)
    match = example[..., None] == index[None, None, :]
    local, is_local = jnp.argmax(match, axis=-1), jnp.any(match, axis=-1)
    sampled = jax.vmap(lambda x, b, p: x[b, p])(inputs, local, position)
    return sampled * is_local[..., None] * (context.batch_size / local_size)


def restart_dead_codes(state: CodebookState, dead: Bool[Array, "n K"], fresh: Books, books: Books) -> CodebookState:
    """Replaces the `dead` entries by `fresh` vectors, and resets their counts to 1 / K.

    With gradient updates, `shift` gets the difference to `books`, the entries at this step.
    """
    count = 1.0 / books.shape[1]
    new = {**state, "counts": jnp.where(dead, count, state["counts"])}
    if "sums" in state:
        new["sums"] = jnp.where(dead[..., None], fresh * count, state["sums"])
    else:
        new["shift"] = state["shift"] + jnp.where(dead[..., None], fresh - books, 0.0)
    return new


def usage(state: CodebookState, codes: Int[Array, "... n"], context: StepContext) -> Float[Array, "n K"]:
    """Returns how often each entry was used since the epoch began: the shares of each step, summed."""
    before = jnp.where(context.new_epoch, 0.0, state["usage"])
    return before + _shares(_by_book(codes), before.shape[1])


def usage_metrics(usage: Float[Array, "n K"]) -> dict[str, Array]:
    """Returns metrics of codebook usage, means over the codebooks.

    "perplexity" is exp(entropy) of the entries, from 1 to K; "codes_used" the proportion of entries in use, in [0, 1].
    """
    share = usage / jnp.maximum(usage.sum(axis=-1, keepdims=True), 1e-12)
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)), axis=-1)
    return {"perplexity": jnp.exp(entropy).mean(), "codes_used": (usage > 0).mean()}


def from_data(
    rng: np.random.Generator, latents: Float[np.ndarray, "N d"], size: int, *, centres: bool
) -> Float[np.ndarray, "K d"]:
    """Initialises a codebook of `size` entries from latents, or from their k-means centres if `centres`.

    With fewer latents than entries, latents are repeated with a little noise.
    """
    if centres and len(latents) > size:
        from sklearn.cluster import KMeans

        kmeans = KMeans(size, n_init=1, max_iter=20, random_state=int(rng.integers(2**31)))  # pyright: ignore[reportArgumentType]
        fitted = kmeans.fit(latents)
        return fitted.cluster_centers_.astype(np.float32)
    chosen = latents[rng.permutation(len(latents))[np.arange(size) % len(latents)]]
    repeated = (np.arange(size) >= len(latents))[:, None]
    return (chosen + repeated * 0.01 * latents.std() * rng.normal(size=chosen.shape)).astype(np.float32)


def _by_book(codes: Int[Array, "... n"]) -> Int[Array, "n N"]:
    return jnp.moveaxis(codes, -1, 0).reshape(codes.shape[-1], -1)


def _shares(codes: Int[Array, "n N"], size: int) -> Float[Array, "n K"]:
    """Returns the proportion of latents that each entry quantises."""
    counts = jax.vmap(lambda code: jnp.bincount(code, length=size))(codes)
    return counts / codes.shape[1]
