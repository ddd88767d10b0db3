"""Gated PixelCNN (van den Oord et al. 2016b): p(picture) as a product over its positions, row by row.

Two stacks of layers see what comes before a position: the vertical one the rows above, the horizontal one, which reads
the vertical one too, what is to the left. Together they leave no blind spot (section 2.2, figure 1).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from diffjax.nn.layers import Dense, Dropout, check_dropout
from diffjax.typing import PRNGKeys

Place = tuple[Int[Array, ""], Int[Array, ""]]  # row, column


def _gate(x: Float[Array, "B H W 2F"]) -> Float[Array, "B H W F"]:
    """tanh(a) sigmoid(b) of the two halves (equation 2)."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * nn.sigmoid(b)


class GatedLayer(nn.Module):
    """One layer of both stacks (figure 2). Both read windows with `kernel` // 2 more rows above, columns on the left.

    The first layer's convolutions leave out the position itself (mask A), the vertical one's the whole row; so the
    first layer has no residual either. Instead of masked kernels there are kernels of what the masks let through.
    """

    features: int
    kernel: int
    first: bool
    dropout: float
    dtype: DTypeLike

    def setup(self):
        before = self.kernel // 2 + (0 if self.first else 1)
        init = nn.initializers.glorot_uniform()
        conv = partial(nn.Conv, 2 * self.features, padding="VALID", dtype=self.dtype, kernel_init=init)
        self.rows = conv((before, self.kernel))
        self.columns = conv((1, before))
        self.link = Dense(2 * self.features, dtype=self.dtype)
        self.condition = Dense(4 * self.features, bias=False, dtype=self.dtype)
        self.drop = Dropout(self.dropout)
        self.out = Dense(self.features, dtype=self.dtype)

    def vertical(
        self, window: Float[Array, "B h+k//2 W+2(k//2) C"], condition: Float[Array, "B #h #W E"] | None
    ) -> tuple[Float[Array, "B h W F"], Float[Array, "B h W 2F"]]:
        """The vertical stack's features, and what the horizontal one adds before its gate (condition included)."""
        y = self.rows(window)[:, : window.shape[1] - self.kernel // 2]  # mask A's kernel fits once more
        link = self.link(y)
        if condition is not None:
            for_vertical, for_horizontal = jnp.split(self.condition(condition), 2, axis=-1)
            y, link = y + for_vertical, link + for_horizontal
        return _gate(y), link

    def horizontal(
        self, window: Float[Array, "B h w+k//2 C"], link: Float[Array, "B h w 2F"], dropout_keys: PRNGKeys | None = None
    ) -> Float[Array, "B h w F"]:
        """The horizontal stack's features."""
        y = _gate(self.columns(window)[:, :, : link.shape[2]] + link)
        y = self.out(self.drop(y, dropout_keys))
        return y if self.first else y + window[:, :, self.kernel // 2 :]


class PixelCNN(nn.Module):
    """What is predicted of each position from those before it, in raster order, and a condition."""

    outputs: int
    features: int = 128
    layers: int = 12
    kernel: int = 5  # odd; a layer lets a position see kernel // 2 further in each direction
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32  # of the computation; parameters and output are float32

    def setup(self):
        if self.kernel % 2 == 0 or self.kernel < 3:
            raise ValueError(f"kernel is {self.kernel}: an odd number from 3")
        check_dropout(self.dropout)
        layer = partial(GatedLayer, self.features, self.kernel, dropout=self.dropout, dtype=self.dtype)
        self.layer = [layer(first=n == 0) for n in range(self.layers)]
        self.head = Dense(self.features, dtype=self.dtype)
        self.out = Dense(self.outputs, "zero")  # so an untrained network's distribution is uniform

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        condition: Float[Array, "B #H #W E"] | None = None,
        dropout_keys: PRNGKeys | None = None,
    ) -> Float[Array, "B H W outputs"]:
        """Return float32 outputs, each a function of `x` at earlier positions only.

        `x` is embedded values. `condition` enters every gate by a linear map (equations 3 and 4): a map of the
        picture's size, or [B, 1, 1, E] for what holds everywhere. `dropout_keys` None: no dropout. Raises ValueError
        for an even kernel or a bad rate of dropout.
        """
        half = self.kernel // 2
        above = left = x
        for layer in self.layer:
            above, link = layer.vertical(jnp.pad(above, ((0, 0), (half, 0), (half, half), (0, 0))), condition)
            left = layer.horizontal(jnp.pad(left, ((0, 0), (0, 0), (half, 0), (0, 0))), link, dropout_keys)
        return self._outputs(left)

    def _outputs(self, h):
        return self.out(nn.relu(self.head(nn.relu(h))))

    # Sampling. Of each layer's two inputs a cache is kept, padded as `__call__` pads: `above` of all rows so far,
    # `left` of the row at hand.

    def row(
        self, above: list[Float[Array, "B _ _ _"]], i: Int[Array, ""], condition: Float[Array, "B 1 #W E"] | None
    ) -> tuple[list[Float[Array, "B _ _ _"]], list[Float[Array, "B 1 W 2F"]]]:
        """Work through the vertical stack at row `i`: the cache with its features, and every layer's link."""
        half, above, links = self.kernel // 2, list(above), []
        for n, layer in enumerate(self.layer):
            h, link = layer.vertical(lax.dynamic_slice_in_dim(above[n], i, half + 1, 1), condition)
            links.append(link)
            if n + 1 < self.layers:
                above[n + 1] = lax.dynamic_update_slice(above[n + 1], h, (0, i + half, half, 0))
        return above, links

    def pixel(
        self, left: list[Float[Array, "B 1 _ _"]], j: Int[Array, ""], links: list[Float[Array, "B 1 W 2F"]]
    ) -> tuple[list[Float[Array, "B 1 _ _"]], Float[Array, "B outputs"]]:
        """Work through the horizontal stack at column `j`: the cache with its features, and the output."""
        half, left = self.kernel // 2, list(left)
        for n, layer in enumerate(self.layer):
            window, link = (lax.dynamic_slice_in_dim(a, j, size, 2) for a, size in ((left[n], half + 1), (links[n], 1)))
            h = layer.horizontal(window, link)
            if n + 1 < self.layers:
                left[n + 1] = lax.dynamic_update_slice(left[n + 1], h, (0, 0, j + half, 0))
        return left, self._outputs(h)[:, 0, 0]


def generate(
    model: PixelCNN,
    params: Any,
    pick: Callable[[PRNGKeys, Float[Array, "B outputs"], Place], tuple[Any, Float[Array, "B C"]]],
    keys: PRNGKeys,
    condition: Float[Array, "B #H #W E"] | None,
    height: int,
    width: int,
) -> Any:
    """Draw pictures position by position; return the values that `pick` gave, [B, H, W, ...] each.

    `pick(keys, output, (i, j))` gives the value at a position, an array or a tree of them, and the embedded input that
    later positions see. Its keys are `keys` with the position i W + j folded in. It may return what is known of a
    position instead of drawing, which completes a picture. Nothing is computed twice: a row's vertical features come
    from those of the rows above, a position's horizontal ones from those to its left.
    """
    batch, half = len(keys) if condition is None else len(condition), model.kernel // 2
    output = jax.ShapeDtypeStruct((batch, model.outputs), jnp.float32)
    x = jax.eval_shape(lambda keys, output: pick(keys, output, (jnp.int32(0), jnp.int32(0)))[1], keys, output)
    inputs = [(x.shape[-1], x.dtype)] + [(model.features, model.dtype)] * (model.layers - 1)
    if condition is not None:
        condition = jnp.broadcast_to(condition, (batch, height, width, condition.shape[-1]))

    def pixel(carry, j, i, links):
        left, output = model.apply({"params": params}, carry, j, links, method="pixel")
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, i * width + j)
        value, x = pick(folded, output, (i, j))
        left[0] = lax.dynamic_update_slice(left[0], x[:, None, None, :], (0, 0, j + half, 0))
        return left, value

    def row(above, i):
        here = None if condition is None else lax.dynamic_slice_in_dim(condition, i, 1, 1)
        above, links = model.apply({"params": params}, above, i, here, method="row")
        left = [jnp.zeros((batch, 1, half + width, channels), dtype) for channels, dtype in inputs]
        left, values = lax.scan(partial(pixel, i=i, links=links), left, jnp.arange(width))
        above[0] = lax.dynamic_update_slice(above[0], left[0][:, :, half:], (0, i + half, half, 0))
        return above, values

    above = [jnp.zeros((batch, half + height, width + 2 * half, channels), dtype) for channels, dtype in inputs]
    _, values = lax.scan(row, above, jnp.arange(height))
    return jax.tree.map(lambda v: jnp.moveaxis(v, 2, 0), values)
