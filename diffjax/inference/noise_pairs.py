"""Pairs of noise and the sample that a diffusion model makes of it, stored to train another model on (reflow)."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array
from tqdm import tqdm

from diffjax.data.latents_store import LABEL, Index, write_index, write_split
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import initial_std
from diffjax.errors import UserError
from diffjax.inference.batching import BatchedFunction, DataParallelMap
from diffjax.inference.prompts import make_prompts
from diffjax.models.capabilities import is_diffusion
from diffjax.models.diffusion.bound_model import BoundModel
from diffjax.models.diffusion.condition_kinds import AugmentLabel, ClassLabel, ClassToken, GuidanceScale
from diffjax.models.diffusion.data_space import LatentSpace
from diffjax.models.diffusion.model import DiffusionModel, condition_keys, with_settings
from diffjax.models.diffusion.process import Process
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.runs.datasets import dataset_info, image_data
from diffjax.runs.dependencies import referenced_run
from diffjax.runs.latents import describe, describe_images
from diffjax.runs.loading import Run, load


def check_run(trained: Run) -> DiffusionModel:
    """Returns the model of a run. Raises UserError if it is no diffusion model, or has conditions besides labels."""
    model = trained.system
    if not is_diffusion(model):
        raise UserError(f"--workdir={trained.workdir.name}: must be a diffusion model, not {trained.config.system}")
    kinds = (ClassLabel, ClassToken, GuidanceScale, AugmentLabel)
    if others := [name for name, condition in model.conditions.each.items() if not isinstance(condition, kinds)]:
        raise UserError(
            f"--workdir={trained.workdir.name}: has conditions.{others[0]}, but pairs have class labels only; choose "
            "an unconditional or class-conditional run"
        )
    return model


def write_pairs(
    trained: Run,
    settings: SamplingSettings,
    folder: Path,
    *,
    num: int,
    seed: int = 0,
    batch_size: int = 100,
    sampling: Mapping[str, Any] | None = None,
) -> Index:
    """Samples a run, and stores each sample with its noise.

    Pair i has the noise, the label and the data of sample i of `launch.py sample`: latents, or pixels that are not
    rounded to grey levels. The classes are in turn. The store has the split that the run was trained on.

    Args:
      trained: run of a diffusion model.
      settings: sampling settings, of a sampler without noise.
      folder: existing folder to write.
      num: number of pairs.
      seed: seed of the first pair; pair i has seed + i.
      batch_size: samples per batch; does not change them.
      sampling: settings to store in the index.

    Returns:
      The index of the store.

    Raises:
      UserError: the run has other conditions than labels, the sampler adds noise, or a sample is not finite.

    Reference: Liu et al. 2023, "Flow straight and fast" (rectified flow), algorithm 1.
    """
    model = check_run(trained)
    if not is_deterministic(model.process, settings):
        raise UserError(
            f"--sampler={settings['sampler']}: adds noise, so a sample does not depend on its first noise alone; use a "
            "sampler without noise, such as --sampler=ddim --eta=0"
        )

    def compute(shared: Any, batch: Any) -> dict[str, Array]:
        (variables, settings), (seeds, conditions) = shared, batch
        keys = jax.vmap(jax.random.key)(seeds)
        conditions = with_settings(conditions, settings, len(keys))
        bound = model.bind(variables, conditions, condition_keys(keys), settings["augmentation"])
        x_T = bound.initial_latents(keys, settings)
        x_0 = _without_decoder(bound).sample(keys, settings, {**conditions, "latent": x_T})
        noise = x_T / initial_std(bound.process.schedule(settings.times[0]))
        return {name: array.astype(jnp.float32) for name, array in {"noise": noise, "x0": x_0}.items()}

    compiled = DataParallelMap(batch_size).compile(compute, "the sampler")
    shape = model.data_space.shape
    arrays = {LABEL: (), "noise": shape, "x0": shape}
    labels = make_prompts(model, num).conditions[LABEL]
    pairs = _sample_all(compiled, jax.device_put((trained.variables, settings)), labels, seed, batch_size)
    split = trained.config.data.split
    stored = write_split(folder, split, arrays, pairs)
    codec = None
    if isinstance(model.data_space, LatentSpace):
        codec_run = referenced_run(trained.config, "codec", trained.workdir.path)
        codec = describe(codec_run, load(codec_run).step, model.frozen["codec"])
    index = Index(
        codec=codec,
        clip=None,
        data=describe_images(image_data(trained.config), dataset_info(trained.config)),
        arrays=arrays,
        has_captions=False,
        splits={split: stored},
        run=describe(trained.workdir.path, trained.step, trained.variables["params"]),
        sampling=sampling or {},
    )
    write_index(folder, index)
    return index


def _sample_all(
    compiled: BatchedFunction, shared: Any, labels: np.ndarray, seed: int, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], None]]:
    """Yields the arrays of consecutive pairs, with a progress bar."""
    with tqdm(total=len(labels), unit="pair", dynamic_ncols=True) as bar:
        for start in range(0, len(labels), batch_size):
            some = labels[start : start + batch_size]
            seeds = (seed + np.arange(start, start + len(some))).astype(np.uint32)
            arrays = dict(compiled(shared, (seeds, {LABEL: some}), bar.update))
            finite = np.isfinite(arrays["x0"]).reshape(len(some), -1).all(axis=1)
            if not finite.all():
                raise UserError(
                    f"the sample of seed {seeds[np.argmin(finite)]} is not finite; use more steps, another sampler or "
                    "less guidance"
                )
            yield {**arrays, LABEL: some}, None


def is_deterministic(process: Process, settings: SamplingSettings) -> bool:
    """Returns whether a sample depends on its initial noise alone: samples of one x_T with different keys are equal.

    The data of this comparison are one value, N(0, 1), with their exact denoiser.
    """

    def denoise(x, now, *next, **caching):
        zeros = jnp.zeros_like(x)
        return Denoised(now.alpha / (now.alpha**2 + now.sigma**2) * x, zeros, features=zeros)

    bound = BoundModel(process, denoise, None, (1,))

    @jax.jit
    def sample(settings):
        keys = jax.random.split(jax.random.key(0), 2)
        return bound.sample(keys, settings, {"latent": jnp.ones((2, 1))})

    one, other = np.asarray(sample(settings))
    return bool(np.array_equal(one, other))


def _without_decoder(bound: BoundModel) -> BoundModel:
    """Returns a model whose samples are data, not images."""
    return dataclasses.replace(bound, decode=lambda x: x)
