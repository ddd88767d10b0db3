"""Sampling of any number of images with one compiled program."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Bool, Int, UInt8, UInt32

from diffjax.diffusion.samplers import Evaluations
from diffjax.errors import UserError, warn
from diffjax.inference.batching import DataParallelMap
from diffjax.models.images import to_grey_levels, to_unit_range
from diffjax.models.observation import Answer, ObservedStep, Observer, Progress
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.typing import Variables


class Listener(NamedTuple):
    """Receives the steps of sampling loops while they run. An exception of either function ends the sampling.

    Attributes:
      start: called at the start of each step; returns whether `receive` is called with its images.
      receive: called with steps.
    """

    start: Callable[[Progress], bool]
    receive: Callable[[ObservedStep], None]


class _Batch(NamedTuple):
    """Samples of a batch, whether their values are finite, and their evaluations with adaptive step sizes."""

    images: UInt8[jax.Array, "B H W C"]
    finite: Bool[jax.Array, " B"]
    evaluations: Evaluations | None


class SampleRunner:
    """Samples a generative model, or reconstructs images with an autoencoder, in batches of one size.

    Batches are divided over devices, by default the local ones.

    Sample i depends only on `seeds[i]`, its conditions and the sampling settings, not on the batch that it is in.

    Attributes:
      compilations: number of times that the sampling program was compiled.
      not_finite: number of samples of the last call with non-finite values.
      evaluations: evaluations of the denoiser for each sample of the last call, with a sampler of adaptive step sizes;
        with `cache_threshold` steps that compute deep features; None: the number is fixed.
    """

    def __init__(self, system: Any, *, batch_size: int, devices: Sequence[Any] | None = None):
        batches = DataParallelMap(batch_size, devices)
        self.compilations = self.not_finite = 0
        self.evaluations: Int[np.ndarray, " N"] | None = None
        self._listener: Listener | None = None
        self._error: BaseException | None = None

        def sample(make_observer: Callable[[], Observer], shared: Any, batch: Any) -> _Batch:
            self.compilations += 1  # runs when traced, once per compilation
            (variables, settings), (seeds, conditions) = shared, batch
            observer = make_observer()
            images = system.sample(variables, jax.vmap(jax.random.key)(seeds), conditions, settings, observer)
            finite = jnp.isfinite(images).reshape(len(images), -1).all(axis=1)
            return _Batch(to_grey_levels(images), finite, _total(observer.evaluations))

        unobserved = functools.partial(Observer, None, self._receive)

        def reconstruct(variables: Variables, images: jax.Array) -> jax.Array:
            codec = system.codec(variables)
            return to_grey_levels(codec.decode(codec.encode(to_unit_range(images))))

        self._sample = batches.compile(functools.partial(sample, unobserved), "the sampler")
        # The observer calls the listener of the current call, so that all calls share the program.
        observed = functools.partial(Observer, self._start, self._receive)
        one_device = DataParallelMap(batch_size, jax.local_devices()[:1])
        self._observed_sample = one_device.compile(functools.partial(sample, observed), "the sampler", ahead=0)
        self._reconstruct = batches.compile(reconstruct, "the autoencoder")

    def __call__(
        self,
        variables: Variables,
        seeds: Sequence[int] | np.ndarray,
        conditions: Mapping[str, np.ndarray],
        settings: SamplingSettings,
        *,
        progress: Callable[[int], Any] = lambda images: None,
        listener: Listener | None = None,
    ) -> UInt8[np.ndarray, "N H W C"]:
        """Samples one image per seed. Prints a warning if samples have non-finite values or exceed a tolerance.

        Args:
          variables: variables of the model.
          seeds: N integers in [0, 2**32 - 1].
          conditions: arrays [N, ...] by name.
          settings: sampling settings, from the model's `make_settings`.
          progress: called after each batch with its number of images.
          listener: receives the steps of diffusion models; the samples are the same, on one device. Several threads
            must not use it at once.

        Returns:
          Images, uint8 in [0, 255].

        Raises:
          UserError: a seed is not below 2**32; larger seeds would repeat others.
          Exception: that of `listener`.
        """
        inputs, shared = (_validate_seeds(seeds), dict(conditions)), (variables, settings)
        if listener is None:
            images, finite, evaluations = self._sample(shared, inputs, progress)
        else:
            images, finite, evaluations = self._observe(shared, inputs, progress, listener)
        self.not_finite = int(np.sum(~finite))
        self.evaluations = evaluations and evaluations.count
        if evaluations and (limited := int(np.sum(evaluations.is_limited))):
            warn(
                f"{limited} of {len(finite)} samples reached max_evaluations of the sampler, so that their errors may "
                "exceed the tolerance: raise max_evaluations, or rtol and atol"
            )
        if self.not_finite:
            warn(
                f"{self.not_finite} of {len(finite)} samples are not finite: lower the guidance, use more steps or "
                "another sampler, or train at a lower train.learning_rate"
            )
        return images

    def _observe(self, shared: Any, inputs: Any, progress: Callable[[int], Any], listener: Listener) -> Any:
        """Samples with calls of the listener, and raises its exception after the batch that it ended."""

        def after_batch(count: int) -> None:
            if self._error is not None:
                raise self._error
            progress(count)

        self._listener, self._error = listener, None
        try:
            return self._observed_sample(shared, inputs, after_batch)
        finally:
            self._listener = self._error = None

    def _start(self, progress: Progress) -> Answer:
        if self._error is None and self._listener is not None:
            try:
                return Answer(wants_images=self._listener.start(progress))
            except BaseException as error:  # raised by `_observe`, as a compiled program cannot
                self._error = error
        return Answer(stops=True)

    def _receive(self, step: ObservedStep) -> bool:
        """Returns whether the listener raised an exception."""
        try:
            if self._error is None and self._listener is not None:
                self._listener.receive(step)
        except BaseException as error:
            self._error = error
        return self._error is not None

    def compile(
        self,
        variables: Variables,
        seeds: Sequence[int] | np.ndarray,
        conditions: Mapping[str, np.ndarray],
        settings: SamplingSettings,
    ) -> None:
        """Compiles the sampling program for a later call with these arguments, unless it is compiled already."""
        self._sample.compile((variables, settings), (_validate_seeds(seeds), dict(conditions)))

    def reconstruct(self, variables: Variables, images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N H W C"]:
        """Returns an autoencoder's reconstructions of images, uint8 in [0, 255]."""
        return self._reconstruct(variables, images)


def _total(evaluations: Sequence[Evaluations]) -> Evaluations | None:
    """Returns the evaluations of all loops of a sample; None: no step sizes are adaptive."""
    if not evaluations:
        return None
    counts, limited = zip(*evaluations, strict=True)
    return Evaluations(jnp.sum(jnp.stack(counts), axis=0), jnp.any(jnp.stack(limited), axis=0))


def _validate_seeds(seeds: Sequence[int] | np.ndarray) -> UInt32[np.ndarray, " N"]:
    seeds = np.asarray(seeds)
    if len(seeds) and not (seeds.min() >= 0 and seeds.max() < 2**32):
        raise UserError(f"--seed={seeds[0]}: seeds go up to {seeds.max()}, and must be below 2**32; lower the seed")
    return seeds.astype(np.uint32)
