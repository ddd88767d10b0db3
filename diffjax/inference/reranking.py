"""Ranking of samples by a CLIP: for metrics, and to keep the best of many samples."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from diffjax import io
from diffjax.errors import UserError, note
from diffjax.inference.batching import DataParallelMap
from diffjax.inference.prompts import Prompts, note_truncated
from diffjax.inference.sampler_runner import Listener, SampleRunner
from diffjax.metrics.features import Network
from diffjax.models.capabilities import is_clip
from diffjax.models.images import to_unit_range
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.nn.pretrained import clip_checkpoint
from diffjax.runs.config_files import flatten, to_json
from diffjax.runs.dependencies import referenced_run
from diffjax.runs.loading import Run, open_clip
from diffjax.runs.tokenizers import load_tokenizer
from diffjax.runs.workdir import Workdir
from diffjax.typing import ImageSpec, Variables


class Reranker:
    """A CLIP that scores how well images and captions agree.

    Attributes:
      provenance: the CLIP's config and checkpoint, or the hash of published weights.
    """

    def __init__(self, path: str | Path, spec: ImageSpec, batch_size: int = 100):
        """Loads a CLIP.

        Args:
          path: folder of a run or of published weights.
          spec: images to score.

        Raises:
          UserError: `path` is not a CLIP for such images.
        """
        system, self._variables = open_clip(path, spec)[:2]
        assert is_clip(system)
        if system.text is None:
            raise UserError(f"clip={path}: has no text encoder, so it cannot score captions; choose another CLIP")
        bind, self._tokenizer, self._text = system.clip, load_tokenizer(path), system.text
        self.provenance = _provenance(path)
        batches = DataParallelMap(batch_size)

        def embed_images(variables: Variables, images: Any) -> Any:
            return bind(variables).embed_images(to_unit_range(images))

        self._features, self._embed_images = embed_images, batches.compile(embed_images, "the image encoder")
        self._embed_captions = batches.compile(
            lambda variables, tokens: bind(variables).embed_texts(tokens), "the text encoder"
        )

    def embed_images(self, images: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N D"]:
        """Returns embeddings of unit norm."""
        return self._embed_images(self._variables, images)

    def embed_captions(self, captions: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Returns embeddings of unit norm."""
        return self._embed_captions(self._variables, self._tokenizer.encode(captions, self._text.length))

    def note_truncated(self, captions: Sequence[str]) -> None:
        """Prints a note for each caption with more tokens than the CLIP reads."""
        note_truncated(self._tokenizer, self._text.length, captions, "the CLIP that ranks")

    def network(self) -> Network:
        """Returns the image encoder as a feature network, to compare sets of images."""

        def extract(variables: Variables, images: Any) -> dict[str, Any]:
            return {"pooled": self._features(variables, images)}

        return Network("clip", self._variables, extract, self.provenance)


def load_reranker(trained: Run, path: str | Path | None = None, batch_size: int = 100) -> Reranker:
    """Loads the CLIP at `path`, or the CLIP of the run's config. Raises UserError if neither exists."""
    return Reranker(_clip_path(trained, path), trained.spec, batch_size)


def check_reranker(trained: Run, path: str | Path | None = None) -> None:
    """Raises UserError if `load_reranker` would find no CLIP; reads config files only."""
    path = _clip_path(trained, path)
    if clip_checkpoint.is_published(path):
        return
    system = Workdir(path).read_config().system
    if system != "clip":
        raise UserError(f"--clip={path}: must be a run of a CLIP, not of system={system}, or published weights")


def _clip_path(trained: Run, path: str | Path | None) -> str | Path:
    if path:
        return path
    fields = flatten(trained.config)
    names = [field for field in ("clip", "rerank.clip") if fields.get(field)]
    if not names:
        raise UserError("a CLIP is required to score images, and this run was trained without one: pass --clip=RUN")
    return referenced_run(trained.config, names[0], trained.workdir.path)


def prepare_reranking(
    trained: Run,
    captions: Sequence[str],
    keep: int,
    candidates: int | None,
    *,
    clip: str | Path | None = None,
    batch_size: int = 100,
) -> tuple[int, Reranker | None]:
    """Returns the number of samples per prompt, and the CLIP that ranks them; None if all are kept.

    Args:
      keep: number of samples to keep per prompt.
      candidates: value of --best_of; None: `keep`.
      clip: run or folder of the CLIP; None: the one of the run's config.
      batch_size: images per call of the CLIP.

    Raises:
      UserError: fewer candidates than samples to keep, or no CLIP.
    """
    if candidates is not None and candidates < keep:
        raise UserError(f"--best_of={candidates}: must be at least --num={keep}, the number of images to keep")
    if candidates == keep:
        note(f"--best_of={keep}: has no effect, because --num keeps all {keep}")
    if candidates is None or candidates == keep:
        return keep, None
    reranker = load_reranker(trained, clip, batch_size)
    reranker.note_truncated(captions)
    return candidates, reranker


class BestSamples(NamedTuple):
    """The best samples of N prompts.

    Attributes:
      images: in the order of prompts, the best first for each prompt.
      seeds: of the images.
      scores: cosine similarity of each image and its prompt; None if all samples are kept.
    """

    images: UInt8[np.ndarray, "N*keep H W C"]
    seeds: Int[np.ndarray, " N*keep"]
    scores: Float[np.ndarray, " N*keep"] | None


def best_of(
    runner: SampleRunner,
    variables: Variables,
    prompts: Prompts,
    settings: SamplingSettings,
    reranker: Reranker | None,
    *,
    candidates: int = 1,
    keep: int = 1,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda images: None,
    listener: Listener | None = None,
) -> BestSamples:
    """Samples `candidates` images for each of N prompts, and returns the `keep` best by CLIP similarity.

    Candidate j of prompt i has the seed `seed` + j N + i, so more candidates include those of fewer.

    Reference: Ramesh et al. 2021 (DALL-E), section 2.6.

    Args:
      settings: sampling settings.
      reranker: scores the candidates; may be None if all are kept.
      progress, listener: see SampleRunner.
    """
    count = prompts.size
    seeds = seed + np.arange(candidates * count)
    conditions = {name: np.tile(v, (candidates, *[1] * (v.ndim - 1))) for name, v in prompts.conditions.items()}
    images = runner(variables, seeds, conditions, settings, progress=progress, listener=listener)
    images, seeds = (x.reshape(candidates, count, *x.shape[1:]).swapaxes(0, 1) for x in (images, seeds))
    scores = None
    if candidates > keep:
        if reranker is None or prompts.captions is None:
            raise ValueError("reranking requires a CLIP and captions")
        embeddings = reranker.embed_images(images.reshape(-1, *images.shape[2:])).reshape(count, candidates, -1)
        scores = np.einsum("nkd,nd->nk", embeddings, reranker.embed_captions(prompts.captions))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
        images, seeds, scores = (x[np.arange(count)[:, None], order] for x in (images, seeds, scores))
        scores = scores.reshape(-1)
    return BestSamples(images.reshape(-1, *images.shape[2:]), seeds.reshape(-1), scores)


def _provenance(path: str | Path) -> dict[str, Any]:
    if clip_checkpoint.is_published(path):
        return {"clip": clip_checkpoint.fingerprint(path)}
    workdir = Workdir(path)
    config = io.short_hash(to_json(workdir.read_config()))
    return {"clip": config, "clip_checkpoint": workdir.last_step()}
