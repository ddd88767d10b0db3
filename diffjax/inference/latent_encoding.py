"""Encoding of a data set by a trained autoencoder, into a store of latents."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict
from tqdm import tqdm

from diffjax.data.examples import Source
from diffjax.data.latents_store import Index, write_index, write_split
from diffjax.data.pipeline import read_in_order
from diffjax.data.records import MissingSplit
from diffjax.data.tokenizer import Tokenizer
from diffjax.errors import UserError
from diffjax.inference.batching import BatchedFunction, DataParallelMap
from diffjax.models.base import ContrastiveModel
from diffjax.models.images import to_unit_range
from diffjax.runs.datasets import dataset_info, held_out_split, image_spec, open_dataset, uses_store
from diffjax.runs.dependencies import referenced_run
from diffjax.runs.latents import describe, describe_images, text_arrays
from diffjax.runs.loading import open_clip, open_codec
from diffjax.runs.tokenizers import load_tokenizer
from diffjax.typing import ImageSpec, Tokens, Variables


def encode(
    config: ConfigDict,
    workdir: str | os.PathLike,
    folder: Path,
    *,
    splits: Sequence[str] | None = None,
    text_states: bool = False,
    batch_size: int = 100,
) -> Index:
    """Encodes the data set of a config.

    Args:
      config: config with the data set, and with the CLIP of `text_states`.
      workdir: run of the autoencoder.
      folder: existing folder to write.
      splits: splits or slices; None: `data.split`, and the held-out one if it exists.
      text_states: store the states of captions.
      batch_size: images per batch.

    Returns:
      The index of the store.

    Raises:
      UserError: the run is not an autoencoder of such images, or the data set cannot be encoded.
    """
    if uses_store(config):
        raise UserError(f"data.name={config.data.name}: has no images to encode; set the data set of the images")
    config = ConfigDict(config.copy_and_resolve_references())
    config.data.cache_gib = 0.0  # images are read once
    c = config.data
    if c.get("fit") == "random_crop":
        raise UserError("data.fit=random_crop: an image has many crops; set center_crop, or train on the images")
    spec, info = image_spec(config), dataset_info(config)
    trained, codec = open_codec(workdir, spec)
    if codec.outputs_embeddings:
        raise UserError(f"--workdir={workdir}: encodes embeddings; choose the run of an autoencoder of images")
    text = _CaptionEncoder.create(config, spec) if text_states else None
    sources = _open_splits(config, splits)
    has_captions = all("caption" in source[0] for source in sources.values())
    if text and not has_captions:
        raise UserError(f"--text_states: data.name={c.name} has no captions; remove the flag")

    def compute(shared: Variables, batch: Mapping[str, Array]) -> dict[str, Array]:
        encode = codec.codec(shared["codec"]).encode
        arrays = {"latent": encode(to_unit_range(batch["image"]))}
        if c.flip:
            arrays["mirrored_latent"] = encode(to_unit_range(batch["image"][:, :, ::-1]))
        if text:
            arrays |= text.compute(shared["clip"], batch["tokens"])
        return {name: array.astype(jnp.float32) for name, array in arrays.items()}

    shared = {"codec": trained.variables} | ({"clip": text.variables} if text else {})
    encoder = DataParallelMap(batch_size).compile(compute)
    stored, arrays = {}, {}
    for split, source in sources.items():
        first = _batch(source.__getitems__([0]), text)
        shapes = jax.eval_shape(compute, shared, first)
        arrays = {"label": (), **{name: leaf.shape[1:] for name, leaf in shapes.items()}}
        batches = _encode_all(encoder, shared, source, text, batch_size, split, with_captions=has_captions)
        stored[split] = write_split(folder, split, arrays, batches)
    index = Index(
        codec=describe(workdir, trained.step, trained.variables),
        clip=describe(text.path, None, text.variables) if text else None,
        data=describe_images(c, info),
        arrays=arrays,
        has_captions=has_captions,
        splits=stored,
    )
    write_index(folder, index)
    return index


@dataclasses.dataclass(frozen=True)
class _CaptionEncoder:
    """The frozen CLIP of a config, which encodes captions."""

    path: Path
    model: ContrastiveModel
    variables: Variables
    tokenizer: Tokenizer
    length: int  # tokens per caption
    arrays: Sequence[str]  # names of the results

    @classmethod
    def create(cls, config: ConfigDict, spec: ImageSpec) -> "_CaptionEncoder":
        """Opens the CLIP. Raises UserError if the config is not conditioned on one."""
        arrays = text_arrays(config)
        if not arrays or not config.get("clip"):
            raise UserError("--text_states: the config has no conditions.clip_text; set --config, or remove the flag")
        path = referenced_run(config, "clip", None)
        model, variables = open_clip(path, spec)[:2]
        assert isinstance(model, ContrastiveModel) and model.text is not None
        return cls(path, model, variables, load_tokenizer(path), model.text.length, arrays)

    def compute(self, variables: Variables, tokens: Tokens) -> dict[str, Array]:
        clip = self.model.clip(variables)
        functions = {"text_states": clip.text_states, "text_embedding": clip.embed_texts}
        return {name: functions[name](tokens) for name in self.arrays}


def _open_splits(config: ConfigDict, splits: Sequence[str] | None) -> dict[str, Source]:
    """Opens the splits to encode."""
    if splits is None:
        splits = [config.data.split]
        with contextlib.suppress(MissingSplit):
            splits.append(held_out_split(config, config.data.split))
    return {split: open_dataset(config, split) for split in splits}


def _batch(examples: Sequence[Mapping[str, Any]], text: _CaptionEncoder | None) -> dict[str, np.ndarray]:
    """Returns the arrays to encode."""
    batch = {"image": np.stack([example["image"] for example in examples])}
    if text:
        batch["tokens"] = text.tokenizer.encode([example["caption"] for example in examples], text.length)
    return batch


def _encode_all(
    encoder: BatchedFunction,
    shared: Variables,
    source: Source,
    text: _CaptionEncoder | None,
    batch_size: int,
    split: str,
    *,
    with_captions: bool,
) -> Iterator[tuple[dict[str, np.ndarray], Sequence[str] | None]]:
    """Yields the arrays of consecutive examples and their captions, with a progress bar."""
    shared = jax.device_put(shared)
    with tqdm(total=len(source), unit="image", desc=split, dynamic_ncols=True) as bar:
        for examples in read_in_order(source, batch_size):
            arrays = dict(encoder(shared, _batch(examples, text), bar.update))
            finite = np.isfinite(arrays["latent"]).reshape(len(examples), -1).all(axis=1)
            if not finite.all():
                i = bar.n - len(examples) + int(np.argmin(finite))
                raise UserError(f"the latents of example {i} of {split} are not finite; train the autoencoder again")
            arrays["label"] = np.array([example["label"] for example in examples], np.int32)
            yield arrays, [example["caption"] for example in examples] if with_captions else None
