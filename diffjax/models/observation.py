"""Observation of sampling loops: steps of a compiled sampler, sent to the host while it runs; evaluations at its end.

The sampler calls the host at the start of each step. The host answers whether it wants the images of the step, which
cost another evaluation of the denoiser, and whether to stop.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.experimental import io_callback
from jaxtyping import Bool, Float, Int, UInt8

from diffjax.diffusion.denoiser import Denoiser
from diffjax.diffusion.noise import Noise
from diffjax.diffusion.samplers import Evaluations
from diffjax.diffusion.sampling import Observe
from diffjax.models.images import to_grey_levels
from diffjax.typing import Images


class Progress(NamedTuple):
    """The start of a step of a sampling loop.

    Attributes:
      stage: pipeline stage; "" for other models.
      index: number of the step, from 1.
      total: number of steps of the loop.
    """

    stage: str
    index: int
    total: int


class ObservedStep(NamedTuple):
    """A step of a sampling loop, with images.

    Attributes:
      progress: the step.
      t, alpha, sigma: noise level before the step.
      x_t: noised data, before the step.
      x_0: estimates of the clean data.
      images: estimates of the images, decoded from x_0.
    """

    progress: Progress
    t: float
    alpha: float
    sigma: float
    x_t: Float[np.ndarray, "B ..."]
    x_0: Float[np.ndarray, "B ..."]
    images: UInt8[np.ndarray, "B H W C"]


class Answer(NamedTuple):
    """Answer of the host to the start of a step.

    Attributes:
      wants_images: whether to call `receive` for this step.
      stops: whether to end all loops after this step; the samples are then not valid.
    """

    wants_images: bool = False
    stops: bool = False


@dataclasses.dataclass(frozen=True)
class Observer:
    """Functions of the host that a compiled sampler calls. They must not raise exceptions.

    Attributes:
      start: called at the start of each step; None: steps are not observed.
      receive: called with the steps whose images `start` wants; returns whether to stop.
      stage: pipeline stage that is observed.
      evaluations: those of each loop with adaptive step sizes, appended while it is traced.
    """

    start: Callable[[Progress], Answer] | None
    receive: Callable[[ObservedStep], bool]
    stage: str = ""
    evaluations: list[Evaluations] = dataclasses.field(default_factory=list)

    def of_stage(self, stage: str) -> "Observer":
        """Returns the observer of a pipeline stage."""
        return dataclasses.replace(self, stage=stage)

    def of_loop(
        self,
        denoise: Denoiser,
        begin: Int[Array, ""] | int,
        steps: Int[Array, ""] | int,
        decode: Callable[[Array], Images] | None,
    ) -> Observe | None:
        """Returns the function that a loop calls at the start of each step; None: steps are not observed.

        Args:
          denoise: the denoiser of the loop, evaluated once more for the images.
          begin: index of the first level.
          steps: index of the last level.
          decode: data to images [-1, 1]; None: the data are embeddings, which are not sent.
        """

        if self.start is None:
            return None
        call_start = self.start

        def start(index: np.ndarray, total: np.ndarray) -> np.ndarray:
            return np.array(call_start(Progress(self.stage, int(index), int(total))), bool)

        def receive(index, total, noise, *arrays) -> np.ndarray:
            progress, (t, alpha, sigma) = Progress(self.stage, int(index), int(total)), map(float, noise)
            return np.array(self.receive(ObservedStep(progress, t, alpha, sigma, *map(np.asarray, arrays))))

        def observe(i: Int[Array, ""], x: Array, noise: Noise) -> Bool[Array, ""]:
            progress = i + 1 - begin, jnp.asarray(steps - begin)
            answer = Answer(*io_callback(start, jax.ShapeDtypeStruct((2,), bool), *progress))
            stops = jnp.asarray(answer.stops)
            if decode is None:
                return stops
            to_images = decode

            def send() -> Bool[Array, ""]:
                x_0 = denoise(x, noise).x0
                images = to_grey_levels(to_images(x_0))
                return io_callback(receive, jax.ShapeDtypeStruct((), bool), *progress, noise, x, x_0, images)

            return stops | lax.cond(answer.wants_images, send, lambda: jnp.array(False))

        return observe
