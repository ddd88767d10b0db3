"""Array aliases with their shapes, and the few types that one room hands another.

Shapes: B batch, H height, W width, C channels. Images are uint8 [0, 255] until they are on the device and
float32 [-1, 1] from then on.
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

Batch = Mapping[str, Array]  # "image" Images8, "label" Labels, "index" Int[B]: the example's place in the global batch
Variables = Mapping[str, Any]  # {"params": {group: tree}, and any mutable collection beside it}


class ImageSpec(NamedTuple):
    """What a system must know of a data set before it is opened."""

    size: int  # height and width
    channels: int
    classes: int  # 0: no labels


class Aux(NamedTuple):
    """What a loss gives beside its value."""

    metrics: Mapping[str, Float[Array, "B"]]  # logged, averaged over the batch
    variables: Mapping[str, Any] = {}  # new values of mutable collections, averaged over the devices


LossFn = Callable[[Variables, Batch, PRNGKeys], tuple[Float[Array, "B"], Aux]]


class Objective(NamedTuple):
    """What training needs of a system."""

    init: Callable[[PRNGKey], Variables]
    losses: Mapping[str, LossFn]  # one a group of parameters, unreduced: only the training step averages


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
