"""Gated PixelCNN (van den Oord et al. 2016b): p(image) as a product over positions in raster order.

The vertical stack of layers has the rows above a position in its receptive field. The horizontal stack has the
positions to the left, and the vertical stack's features. Together they have no blind spot (section 2.2, figure 1).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

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
    """Returns tanh(a) sigmoid(b) for the two halves a, b of the channels (eq. 2)."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * nn.sigmoid(b)


class GatedLayer(nn.Module):
    """Layer of both stacks (figure 2), on windows padded by `kernel` // 2 rows above and columns on the left.

    In the first layer, the horizontal convolution excludes the position itself (mask A), the vertical one its whole
    row, and there is no residual connection. Kernels have the shape of the unmasked part, so no mask is applied.
    """

    features: int  # output channels per stack
    kernel: int  # side of the unmasked kernel, odd
    first: bool  # whether this is the first layer
    dropout: float  # rate
    dtype: DTypeLike  # compute dtype

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
        self, window: Float[Array, "B h+k//2 W+2(k//2) C"], condition: Float[Array, " B #h #W E"] | None
    ) -> tuple[Float[Array, "B h W F"], Float[Array, "B h W 2F"]]:
        """Returns features of the vertical stack, and the input of the horizontal gate, condition included."""
        y = self.rows(window)[
            :, : window.shape[1] - self.kernel // 2
        ]  # the smaller kernel of mask A gives one row more
        link = self.link(y)
        if condition is not None:
            for_vertical, for_horizontal = jnp.split(self.condition(condition), 2, axis=-1)
            y, link = y + for_vertical, link + for_horizontal
        return _gate(y), link

    def horizontal(
        self, window: Float[Array, "B h w+k//2 C"], link: Float[Array, "B h w 2F"], dropout_keys: PRNGKeys | None = None
    ) -> Float[Array, "B h w F"]:
        """Returns features of the horizontal stack."""
        y = _gate(self.columns(window)[:, :, : link.shape[2]] + link)
        y = self.out(self.drop(y, dropout_keys))
        return y if self.first else y + window[:, :, self.kernel // 2 :]


class PixelCNN(nn.Module):
    """Predicts each position from the previous ones, in raster order, and a condition.

    Reference: van den Oord et al. 2016b, section 2 and figure 2.
    """

    outputs: int  # values predicted per position, such as logits
    features: int = 128  # channels of both stacks
    layers: int = 12
    kernel: int = 5  # odd; each layer extends the receptive field by kernel // 2 in each direction
    dropout: float = 0.0  # rate
    dtype: DTypeLike = jnp.float32  # compute dtype; parameters and output are float32

    def setup(self):
        if self.kernel % 2 == 0 or self.kernel < 3:
            raise ValueError(f"kernel={self.kernel}: must be odd and at least 3")
        check_dropout(self.dropout)
        layer = partial(GatedLayer, self.features, self.kernel, dropout=self.dropout, dtype=self.dtype)
        self.layer = [layer(first=n == 0) for n in range(self.layers)]
        self.head = Dense(self.features, dtype=self.dtype)
        self.out = Dense(self.outputs, "zero")  # the initial distribution is uniform

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        condition: Float[Array, " B #H #W E"] | None = None,
        dropout_keys: PRNGKeys | None = None,
    ) -> Float[Array, "B H W outputs"]:
        """Computes the outputs of all positions in parallel.

        Args:
          x: embedded values [B, H, W, C].
          condition: added to every gate after a linear map (eqs. 3, 4); per position, or [B, 1, 1, E] for the image.
          dropout_keys: one key per example; None: no dropout.

        Returns:
          Outputs, float32 [B, H, W, outputs]; each depends on `x` at previous positions only.

        Raises:
          ValueError: an even kernel, or a dropout rate outside [0, 1).
        """
        half = self.kernel // 2
        above = left = x
        for layer in self.layer:
            above, link = layer.vertical(jnp.pad(above, ((0, 0), (half, 0), (half, half), (0, 0))), condition)
            left = layer.horizontal(jnp.pad(left, ((0, 0), (0, 0), (half, 0), (0, 0))), link, dropout_keys)
        return self._outputs(left)

    def _outputs(self, h):
        return self.out(nn.relu(self.head(nn.relu(h))))

    # Sampling caches both inputs of each layer, padded as in `__call__`: `above` for all previous rows, `left` for
    # the current row.

    def row(
        self, above: list[Float[Array, "B _ _ _"]], i: Int[Array, ""], condition: Float[Array, "B 1 #W E"] | None
    ) -> tuple[list[Float[Array, "B _ _ _"]], list[Float[Array, "B 1 W 2F"]]]:
        """Applies the vertical stack at row `i`; returns the updated cache and the gate input of each layer."""
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
        """Applies the horizontal stack at column `j`; returns the updated cache and the output."""
        half, left, h = self.kernel // 2, list(left), jnp.zeros(())
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
    condition: Float[Array, " B #H #W E"] | None,
    height: int,
    width: int,
) -> Any:
    """Samples images position by position in raster order, with cached features of previous positions.

    Args:
      model: the network.
      params: parameters of the network.
      pick: (keys, output, (i, j)) -> (value, input): the value at a position, an array or a tree [B, ...], and its
        embedding [B, C], the input for later positions. It may return a known value instead of a sample, which
        completes an image.
      keys: one key per example; `pick` gets them with the position i * width + j folded in.
      condition: see `PixelCNN.__call__`.
      height: rows of the image.
      width: columns of the image.

    Returns:
      The values from `pick` at all positions, [B, height, width, ...].
    """
    batch, half = len(keys) if condition is None else len(condition), model.kernel // 2
    output = jax.ShapeDtypeStruct((batch, model.outputs), jnp.float32)
    x = jax.eval_shape(lambda keys, output: pick(keys, output, (jnp.int32(0), jnp.int32(0)))[1], keys, output)
    inputs = [(x.shape[-1], x.dtype)] + [(model.features, model.dtype)] * (model.layers - 1)
    if condition is not None:
        condition = jnp.broadcast_to(condition, (batch, height, width, condition.shape[-1]))

    def pixel(carry, j, i, links):
        left, output = cast(tuple, model.apply({"params": params}, carry, j, links, method="pixel"))
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
