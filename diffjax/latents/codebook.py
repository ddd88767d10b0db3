"""Codebooks: which code is nearest, how codes follow what they stand for, and how dead ones are brought back.

Books are [n, K, d]: n codebooks of K codes. What a memory takes from a batch is a mean over its latents, so that means
over devices make it the whole batch's.
"""

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffjax.typing import Moment

Books = Float[Array, "n K d"]
Memory = dict[str, Array]  # "counts" and "seen" [n, K]; "sums" [n, K, d] with running means, "shift" [n, K, d] without

_LEAST = 1e-12  # of a count
_NO_EXAMPLE = 2**32 - 1  # an example's key is folded with its index, which is none so large


def init(books: Books, *, ema: bool) -> Memory:
    """A memory in which every code of `books` is used alike."""
    count = jnp.full(books.shape[:2], 1.0 / books.shape[1])
    followed = {"sums": books * count[..., None]} if ema else {"shift": jnp.zeros_like(books)}
    return {"counts": count, "seen": jnp.zeros_like(count), **followed}


def means(memory: Memory) -> Books:
    """The running means of what each code stands for: VQ-VAE (van den Oord et al. 2017), app. A.1, eq. 8."""
    return memory["sums"] / memory["counts"][..., None]


def normalized(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Vectors of length one."""
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12))


def nearest(z: Float[Array, "... d"], book: Float[Array, "K d"]) -> Int[Array, "..."]:
    """Returns the code with the least distance |z - e|^2: VQ-VAE, eq. 1.

    Distances are computed as |e|^2 - 2 z e, of vectors from the book's mean: far from zero it would round by more than
    codes differ. So would a product that an accelerator takes in less than float32.
    """
    centre = book.mean(axis=0, keepdims=True)
    z, shape, book = z.reshape(-1, z.shape[-1]) - centre, z.shape[:-1], book - centre
    product = jnp.matmul(z, book.T, precision=lax.Precision.HIGHEST)
    distance = jnp.sum(book**2, axis=-1)[None, :] - 2 * product
    return jnp.argmin(distance, axis=-1).reshape(shape)


def moved(memory: Memory, inputs: Float[Array, "n ... d"], codes: Int[Array, "... n"], *, decay: float) -> Memory:
    """Counts, and sums where there are any, moved towards those of the batch: VQ-VAE, app. A.1, eqs. 6 and 7.

    Counts are shares of the latents. A code that stands for nothing keeps a count of about `_LEAST`, and so its place.
    """
    codes = _by_book(codes)
    inputs = inputs.reshape(*codes.shape, -1)
    size = memory["counts"].shape[1]
    keep = jnp.where(memory["counts"] < _LEAST, 1.0, decay)
    new = {**memory, "counts": keep * memory["counts"] + (1 - decay) * _shares(codes, size)}
    if "sums" in memory:
        sums = jax.vmap(lambda x, code: jax.ops.segment_sum(x, code, size))(inputs, codes) / codes.shape[1]
        new["sums"] = keep[..., None] * memory["sums"] + (1 - decay) * sums
    return new


def candidates(inputs: Float[Array, "n B ... d"], size: int, index: Int[Array, "B"], moment: Moment) -> Books:
    """For every code a latent of the whole batch, drawn by the step's key.

    Averaged over the devices: the one that has the latent gives it, times the number of devices, the others give zeros.
    """
    inputs = inputs.reshape(*inputs.shape[:2], -1, inputs.shape[-1])  # [n, B, positions, d]
    books, here, positions, _ = inputs.shape
    example_key, place_key = jax.random.split(jax.random.fold_in(moment.key, _NO_EXAMPLE))
    example = jax.random.randint(example_key, (books, size), 0, moment.batch_size)
    place = jax.random.randint(place_key, (books, size), 0, positions)
    match = example[..., None] == index[None, None, :]
    local, is_here = jnp.argmax(match, axis=-1), jnp.any(match, axis=-1)
    drawn = jax.vmap(lambda x, b, p: x[b, p])(inputs, local, place)
    return drawn * is_here[..., None] * (moment.batch_size / here)


def restarted(memory: Memory, dead: Bool[Array, "n K"], fresh: Books, books: Books) -> Memory:
    """The memory with `fresh` vectors for `dead` codes, which then count as used alike.

    Where codes are learned by gradients, `shift` carries the difference from the `books` of this step.
    """
    count = 1.0 / books.shape[1]
    new = {**memory, "counts": jnp.where(dead, count, memory["counts"])}
    if "sums" in memory:
        new["sums"] = jnp.where(dead[..., None], fresh * count, memory["sums"])
    else:
        new["shift"] = memory["shift"] + jnp.where(dead[..., None], fresh - books, 0.0)
    return new


def seen(memory: Memory, codes: Int[Array, "... n"], moment: Moment) -> Float[Array, "n K"]:
    """How often each code was used since the epoch began, as sums of shares."""
    before = jnp.where(moment.new_epoch, 0.0, memory["seen"])
    return before + _shares(_by_book(codes), before.shape[1])


def usage(seen: Float[Array, "n K"]) -> dict[str, Array]:
    """Perplexity exp(entropy) of the codes, from 1 to K, and the share of them in use; means over the codebooks."""
    share = seen / jnp.maximum(seen.sum(axis=-1, keepdims=True), 1e-12)
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)), axis=-1)
    return {"perplexity": jnp.exp(entropy).mean(), "codes_used": (seen > 0).mean()}


def from_data(
    rng: np.random.Generator, latents: Float[np.ndarray, "N d"], size: int, *, centres: bool
) -> Float[np.ndarray, "K d"]:
    """A codebook drawn from latents or, with `centres`, of their centres by k-means.

    Where there are fewer latents than codes, they are repeated with a little noise.
    """
    if centres and len(latents) > size:
        from sklearn.cluster import KMeans

        fitted = KMeans(size, n_init=1, max_iter=20, random_state=int(rng.integers(2**31))).fit(latents)
        return fitted.cluster_centers_.astype(np.float32)
    chosen = latents[rng.permutation(len(latents))[np.arange(size) % len(latents)]]
    again = (np.arange(size) >= len(latents))[:, None]
    return (chosen + again * 0.01 * latents.std() * rng.normal(size=chosen.shape)).astype(np.float32)


def _by_book(codes: Int[Array, "... n"]) -> Int[Array, "n N"]:
    return jnp.moveaxis(codes, -1, 0).reshape(codes.shape[-1], -1)


def _shares(codes: Int[Array, "n N"], size: int) -> Float[Array, "n K"]:
    """The share of latents that each code stands for."""
    counts = jax.vmap(lambda code: jnp.bincount(code, length=size))(codes)
    return counts / codes.shape[1]
