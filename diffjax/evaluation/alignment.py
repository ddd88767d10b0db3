"""Metrics of images and captions: by a CLIP, and for scenes of `shapes` by reading the image."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from diffjax.data import shapes
from diffjax.errors import UserError
from diffjax.evaluation.settings import Examples, Result, Row, Settings, percent_with_error, share_and_error
from diffjax.inference.reranking import Reranker
from diffjax.metrics import alignment, resampling
from diffjax.metrics.resampling import Estimate, proportion_with_error
from diffjax.runs.datasets import dataset_info, image_data
from diffjax.runs.loading import Run

_CHECKS = tuple(f"caption_{part}" for part in shapes.CaptionCheck._fields)
CAPTION_VALUES = ("caption_accuracy", *_CHECKS, "caption_relation_share")  # names of `caption_accuracy`'s values
RELATION_CHANCE = 1 / len(shapes.RELATIONS)  # caption_relation of objects at positions independent of the caption
CANDIDATES = 100  # captions among which R-precision retrieves one
_RECALL_AT = (1, 5, 10)


def clip_metrics(
    judge: Reranker, images: UInt8[np.ndarray, "N H W C"], captions: Sequence[str], *, seed: int
) -> Mapping[str, Estimate]:
    """Returns the CLIP score and the R-precision of images and their captions.

    Images of one caption are correlated: errors are over captions. R-precision has no value for a single caption.
    """
    groups = np.asarray(captions)
    image_embeddings, text_embeddings = judge.embed_images(images), judge.embed_captions(captions)
    scores = resampling.mean(alignment.clip_score(image_embeddings, text_embeddings), groups)
    if len(set(captions)) < 2:
        return {"clip_score": scores, "r_precision": Estimate(None, None)}
    correct = alignment.retrieval_precision(
        image_embeddings, text_embeddings, captions, candidates=CANDIDATES, seed=seed
    )
    return {"clip_score": scores, "r_precision": proportion_with_error(correct, groups)}


def caption_accuracy(images: UInt8[np.ndarray, "N H W C"], captions: Sequence[str]) -> dict[str, Estimate]:
    """Returns the proportions of images of `shapes` that agree with their caption: in all parts, and in each part.

    A caption that does not mention a part does not count for it. A part that no caption mentions is absent. The
    relation counts over the images whose two objects are identified as those of the caption (see
    `shapes.check_and_identify`), whatever their positions: its value by chance is RELATION_CHANCE.
    `caption_relation_share` is the proportion of identified images among those of captions with a relation; if it is
    0, `caption_relation` has no value. Colour, shape and size are read under the pairing of objects and phrases that
    agrees in most of them. Errors are over captions.
    """
    read = [shapes.check_and_identify(image, caption) for image, caption in zip(images, captions, strict=True)]
    checks, identified = np.array([check for check, _ in read]), np.array([known for _, known in read])
    groups = np.asarray(captions)
    parsed = [shapes.parse(caption) for caption in captions]
    has_relation = np.array([description.relation is not None for description in parsed])
    counted = dict.fromkeys(_CHECKS, np.ones(len(parsed), bool))
    counted["caption_relation"] = identified
    counted["caption_size"] = np.array([any(group.size for group in description.groups) for description in parsed])
    result = {"caption_accuracy": proportion_with_error(np.asarray(checks.all(axis=1)), groups)}
    for name, correct in zip(_CHECKS, checks.T, strict=True):
        if counted[name].any():
            result[name] = proportion_with_error(correct[counted[name]], groups[counted[name]])
    if has_relation.any():
        result.setdefault("caption_relation", Estimate(None, None))
        result["caption_relation_share"] = proportion_with_error(identified[has_relation], groups[has_relation])
    return result


def check_shapes(name: str, trained: Run) -> None:
    """Raises UserError unless the captions are those of `shapes`, the only images that can be read."""
    if (data_name := image_data(trained.config).name) != "shapes":
        raise UserError(f"--metrics={name}: requires data.name=shapes (this run: {data_name}); remove it")


def check_template(template: str) -> None:
    """Raises UserError unless the template of zero-shot classification has one {} for the name of a class."""
    if template.count("{}") != 1:
        raise UserError(f"--template={template}: must contain {{}} once, for the name of a class; add or remove it")


def retrieval(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns recall@k of a CLIP: how often the caption of an image is among its k nearest, and the reverse.

    Images with the same caption count as matches of each other.
    """
    judge = Reranker(trained.workdir.path, trained.spec, settings.batch_size)
    images, texts = judge.embed_images(examples.images), judge.embed_captions(_captions(examples))
    groups = np.unique(np.asarray(examples.captions), return_inverse=True)[1]
    same = groups[:, None] == groups[None, :]
    count, matches = len(images), same.sum(axis=1)
    values, rows = {}, []
    for name, (queries, answers) in {"text_of_image": (images, texts), "image_of_text": (texts, images)}.items():
        for k in _RECALL_AT:
            # k random answers contain one of m matches among n: 1 - C(n - m, k) / C(n, k)
            misses = np.prod([(count - matches - i) / (count - i) for i in range(min(k, count))], axis=0)
            chance = float(1 - misses.clip(0).mean())
            estimate = share_and_error(alignment.recall(queries, answers, k=k, same=same), groups)
            values[f"{name}_{k}"] = {**estimate, "chance": chance}
            rows.append(_row(f"{name.replace('_', ' ')}, recall@{k}", estimate, chance))
    captions = len(set(groups))
    return Result(
        title=f"retrieval among {count} images of {settings.split} and {captions} captions, checkpoint {trained.step}",
        values=values | {"captions": captions},
        rows=rows,
    )


def composition(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns how often a CLIP prefers the caption of an image to all captions with one error.

    After Yuksekgonul et al. 2023, who test whether CLIP reads captions as bags of words. The errors are those of
    `shapes.contradictions`. A tie counts as an error.
    """
    check_shapes("composition", trained)
    judge = Reranker(trained.workdir.path, trained.spec, settings.batch_size)
    captions = _captions(examples)
    wrong = [_wrong_captions(caption) for caption in captions]
    texts = sorted(set(captions).union(*(others for kinds in wrong for others in kinds.values())))
    index = {text: i for i, text in enumerate(texts)}
    image_embeddings, text_embeddings = judge.embed_images(examples.images), judge.embed_captions(texts)
    values, rows = {}, []
    for kind in wrong[0]:
        correct, chances, counted = [], [], []
        for image, caption, kinds in zip(image_embeddings, captions, wrong, strict=True):
            if kinds[kind]:
                scores = text_embeddings[[index[other] for other in kinds[kind]]] @ image
                correct.append(text_embeddings[index[caption]] @ image > scores.max())
                chances.append(1 / (1 + len(scores)))
                counted.append(caption)
        if len(correct) > 1:
            estimate, chance = share_and_error(np.array(correct), np.array(counted)), float(np.mean(chances))
            values[kind] = {**estimate, "chance": chance, "images": len(correct)}
            rows.append(_row(kind, estimate, chance))
    count = len(examples.images)
    return Result(
        title=f"{count} images of {settings.split} and captions with one error, checkpoint {trained.step}",
        values=values,
        rows=rows,
    )


def _wrong_captions(caption: str) -> dict[str, list[str]]:
    contradictions = shapes.contradictions(shapes.parse(caption))
    return {kind: [shapes.sentence(each) for each in descriptions] for kind, descriptions in contradictions.items()}


def zero_shot(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns the accuracy of the class with the nearest sentence: CLIP (Radford et al. 2021), section 3.1."""
    check_template(settings.template)
    names = dataset_info(trained.config).class_names
    if not names:
        raise UserError(
            f"--metrics=zero_shot: the classes of data.name={trained.config.data.name} have no names; remove it"
        )
    judge = Reranker(trained.workdir.path, trained.spec, settings.batch_size)
    sentences = [settings.template.format(name) for name in names]
    nearest = np.argmax(judge.embed_images(examples.images) @ judge.embed_captions(sentences).T, axis=1)
    estimate, chance = share_and_error(nearest == examples.labels), 1 / len(names)
    return Result(
        title=f"zero-shot classification of {len(nearest)} images of {settings.split} as {settings.template!r}, "
        f"{len(names)} classes, checkpoint {trained.step}",
        values={"accuracy": {**estimate, "chance": chance}, "template": settings.template},
        rows=[_row("accuracy", estimate, chance)],
    )


def _row(label: str, estimate: Mapping[str, float | None], chance: float) -> Row:
    return Row(label, f"{percent_with_error(**estimate)} (chance {chance:.1%})")


def _captions(examples: Examples) -> list[str]:
    assert examples.captions is not None, "a CLIP is trained on captions"
    return examples.captions
