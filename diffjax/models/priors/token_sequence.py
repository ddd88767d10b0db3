"""Codes of all scales as one sequence of tokens, with the embeddings of tokens and positions."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from diffjax.typing import Codes, PRNGKey

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """The codes of a codec as N tokens, the coarsest scale first.

    Attributes:
      grids: h, w, n of each scale, coarsest first; n tokens per position.
      vocabulary: number of values of a token.
      width: channels of an embedding.
    """

    grids: tuple[tuple[int, int, int], ...]
    vocabulary: int
    width: int

    @property
    def length(self) -> int:
        """Number of tokens N."""
        return sum(self._lengths)

    @property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(math.prod(grid) for grid in self.grids)

    @property
    def levels(self) -> Int[np.ndarray, " N"]:
        """Scale of each token."""
        return np.repeat(np.arange(len(self.grids)), self._lengths)

    def init(self, token_key: PRNGKey, position_key: PRNGKey) -> Params:
        """Returns fresh embeddings, normal with the standard deviation of GPT-2. Consumes both keys."""

        def table(key: PRNGKey, *shape: int) -> Array:
            return 0.02 * jax.random.normal(key, (*shape, self.width))

        def position_tables(key: PRNGKey, grid: tuple[int, int, int]) -> Params:
            axes = zip(("row", "column", "part"), grid, jax.random.split(key, 3), strict=True)
            return {name: table(k, side) for name, side, k in axes}

        return {
            "embedding": table(token_key, len(self.grids), self.vocabulary),
            "place": list(map(position_tables, jax.random.split(position_key, len(self.grids)), self.grids)),
        }

    def embed_positions(self, params: Params) -> Float[Array, "N W"]:
        """Returns the embedding of each position: the sum of those of its row, column and part."""
        embeddings = [
            p["row"][:, None, None] + p["column"][None, :, None] + p["part"][None, None, :] for p in params["place"]
        ]
        return jnp.concatenate([level.reshape(-1, level.shape[-1]) for level in embeddings])

    def grid_positions(self, before: int) -> Float[Array, "before+N 2"]:
        """Returns row and column of `before` tokens of a text and of all N tokens, for rotary position embeddings.

        Text tokens have their index as both, and those of images follow, as in Qwen2-VL (Wang et al. 2024). Rows and
        columns of a coarse scale are those of the centres of its codes in the finest scale.
        """

        def centres(grid: tuple[int, int, int]) -> Float[np.ndarray, "h*w*n 2"]:
            height, width, parts = grid
            scale = np.array(self.grids[-1][:2]) / (height, width)
            rows_and_columns = np.indices((height, width)).reshape(2, -1).T
            return np.repeat((rows_and_columns + 0.5) * scale - 0.5, parts, axis=0)

        text = np.repeat(np.arange(before)[:, None], 2, axis=1)
        return jnp.asarray(np.concatenate([text, *(before + centres(grid) for grid in self.grids)]), jnp.float32)

    def embed(self, params: Params, tokens: Int[Array, "B K"]) -> Float[Array, "B K W"]:
        """Returns the embeddings of the first K tokens, with those of their positions."""
        count = tokens.shape[1]
        embeddings = params["embedding"][self.levels[:count][None, :], tokens]
        return embeddings + self.embed_positions(params)[None, :count]

    def flatten(self, codes: Codes) -> Int[Array, "B N"]:
        """Returns the tokens of codes."""
        return jnp.concatenate([level.reshape(len(level), -1) for level in codes], axis=1)

    def unflatten(self, tokens: Int[Array, "B N"]) -> Codes:
        """Returns the codes of tokens."""
        parts = jnp.split(tokens, np.cumsum(self._lengths)[:-1], axis=1)
        return tuple(part.reshape(-1, *grid) for part, grid in zip(parts, self.grids, strict=True))
