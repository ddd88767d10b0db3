"""A CLIP as a judge of pictures and captions: for measures, and to keep the best of many samples."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from diffjax import io
from diffjax.errors import UserError
from diffjax.inference.batching import Spread
from diffjax.inference.prompts import Prompts, note_cut
from diffjax.inference.sampler_runner import Generator
from diffjax.metrics.features import Network
from diffjax.models.pixels import to_unit_range
from diffjax.nn.pretrained import clip_checkpoint
from diffjax.runs.config_files import flatten, referred_run, to_json
from diffjax.runs.loading import Run, open_clip, tokenizer_of
from diffjax.runs.workdir import Workdir
from diffjax.typing import ImageSpec, Variables


class Judge:
    """A CLIP that says which pictures and captions belong together.

    Attributes:
      provenance: what its figures depend on.
    """

    def __init__(self, path: str | Path, spec: ImageSpec, batch_size: int = 100):
        """Opens the run, or folder of published weights, at `path`. Raises UserError where it is no CLIP."""
        system, self._variables = open_clip(path, spec)
        self._tokenizer, self._text = tokenizer_of(path), system.text
        self.provenance = _provenance(path)
        spread = Spread(batch_size)

        def embed(variables, images):
            return system.clip(variables).embed_images(to_unit_range(images))

        self._embed, self._pictures = embed, spread.compile(embed)
        self._texts = spread.compile(lambda variables, tokens: system.clip(variables).embed_texts(tokens))

    def pictures(self, images: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N D"]:
        """Embeddings of unit length, as the next."""
        return self._pictures(self._variables, images)

    def texts(self, captions: Sequence[str]) -> Float[np.ndarray, "N D"]:
        return self._texts(self._variables, self._tokenizer.encode(captions, self._text.length))

    def note_cut(self, captions: Sequence[str]) -> None:
        """Prints a note for each caption that is longer than the CLIP reads."""
        note_cut(self._tokenizer, self._text.length, captions, "the CLIP that ranks")

    def network(self) -> Network:
        """Its pictures as features that sets of samples are compared in."""

        extract = lambda variables, images: {"pooled": self._embed(variables, images)}  # noqa: E731
        return Network("clip", self._variables, extract, self.provenance)


def judge_of(trained: Run, path: str | Path | None = None, batch_size: int = 100) -> Judge:
    """The CLIP at `path`, or else the one that a run names. Raises UserError for none."""
    return Judge(_judge_path(trained, path), trained.spec, batch_size)


def check_judge(trained: Run, path: str | Path | None = None) -> None:
    """Raises UserError where `judge_of` would find no CLIP, from its config alone."""
    path = _judge_path(trained, path)
    if clip_checkpoint.is_published(path):
        return
    system = Workdir(path).read_config().system
    if system != "clip":
        raise UserError(f"--clip={path}: a run of system={system}, not of a CLIP; name one, or published weights")


def _judge_path(trained: Run, path: str | Path | None) -> str | Path:
    """Returns the folder of the CLIP that judges a run's samples. Raises UserError where none is named."""
    if path:
        return path
    fields = flatten(trained.config)
    named = [field for field in ("clip", "rerank.clip") if fields.get(field)]
    if not named:
        raise UserError("a CLIP is needed to judge pictures, and none was trained with this run: --clip=RUN")
    return referred_run(trained.config, named[0], trained.workdir.path)


def best_of(
    generator: Generator,
    variables: Variables,
    asked: Prompts,
    plan,
    judge: Judge | None,
    *,
    candidates: int = 1,
    keep: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[UInt8[np.ndarray, "N*keep H W C"], Int[np.ndarray, "N*keep"]]:
    """The best `keep` of as many `candidates` for each of N prompts, by `judge` (DALL-E, section 2.6), the best first.

    Candidate j of prompt i has the seed `seed` + j N + i, so that more candidates are the same and others. Without a
    choice to make there is no judge.

    Returns:
      Pictures, those of the first prompt first, and their seeds.
    """
    count = len(asked.condition["label"])
    seeds = seed + np.arange(candidates * count)
    condition = {name: np.tile(v, (candidates, *[1] * (v.ndim - 1))) for name, v in asked.condition.items()}
    images = generator(variables, seeds, condition, plan, progress=progress)
    images, seeds = (x.reshape(candidates, count, *x.shape[1:]).swapaxes(0, 1) for x in (images, seeds))
    if candidates > keep:
        embedded = judge.pictures(images.reshape(-1, *images.shape[2:])).reshape(count, candidates, -1)
        scores = np.einsum("nkd,nd->nk", embedded, judge.texts(asked.captions))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
        images, seeds = (x[np.arange(count)[:, None], order] for x in (images, seeds))
    return images.reshape(-1, *images.shape[2:]), seeds.reshape(-1)


def _provenance(path: str | Path) -> dict[str, Any]:
    if clip_checkpoint.is_published(path):
        return {"clip": clip_checkpoint.fingerprint(path)}
    workdir = Workdir(path)
    config = io.short_hash(to_json(workdir.read_config()))
    return {"clip": config, "clip_checkpoint": workdir.last_step()}
