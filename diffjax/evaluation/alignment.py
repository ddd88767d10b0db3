"""What is measured of pictures and captions: by a CLIP, and of scenes of shapes by reading the picture back."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from diffjax import data
from diffjax.data import shapes
from diffjax.errors import UserError
from diffjax.evaluation.settings import Examples, Settings, percent_with_error, share_and_error
from diffjax.inference.reranking import Judge
from diffjax.metrics import alignment, resampling
from diffjax.metrics.resampling import Estimate, share
from diffjax.runs.loading import Run

_CHECKS = tuple(f"caption_{part}" for part in shapes.Check._fields)
PARTS = ("captions", *_CHECKS, "caption_relation_share")  # of a caption, the first for all at once
RELATION_CHANCE = 1 / len(shapes.RELATIONS)  # of the relation of objects that are placed without regard to the caption
CANDIDATES = 100  # captions that one is told from
_NEAREST = (1, 5, 10)  # how many answers a retrieval may give


def by_clip(
    judge: Judge, images: UInt8[np.ndarray, "N H W C"], captions: Sequence[str], *, seed: int
) -> Mapping[str, Estimate]:
    """Returns the CLIP score and the retrieval precision of images of captions.

    Images of one caption are correlated: errors are over captions. The precision has no value for a single caption.
    """
    found, said = judge.pictures(images), judge.texts(captions)
    scores = resampling.mean(alignment.clip_score(found, said), captions)
    if len(set(captions)) < 2:
        return {"clip_score": scores, "r_precision": Estimate(None, None)}
    right = alignment.retrieval_precision(found, said, captions, candidates=CANDIDATES, seed=seed)
    return {"clip_score": scores, "r_precision": share(right, captions)}


def by_reading(images: UInt8[np.ndarray, "N H W C"], captions: Sequence[str]) -> dict[str, Estimate]:
    """Returns the shares of images of shapes that show what their caption says: all of it, and part by part.

    A caption that does not mention a part is not counted for it, and a part that no caption mentions is absent. The
    relation is counted over the images whose two objects are identified (`shapes.read`), without regard to where they
    are: RELATION_CHANCE is its value by chance. `caption_relation_share` is the share of such images among those of
    captions with a relation; if there are none, `caption_relation` has no value. Colour, shape and size are read under
    the pairing of objects and phrases that has most of them right. Errors are over captions.
    """
    read = [shapes.read(image, caption) for image, caption in zip(images, captions, strict=True)]
    checks, identified = np.array([check for check, _ in read]), np.array([known for _, known in read])
    captions = np.asarray(captions)
    said = [shapes.parse(caption) for caption in captions]
    counted = dict.fromkeys(_CHECKS, np.ones(len(said), bool))
    relation = np.array([description.relation is not None for description in said])
    counted["caption_relation"] = identified
    counted["caption_size"] = np.array([any(group.size for group in description.groups) for description in said])
    result = {"captions": share(checks.all(axis=1), captions)}
    for name, right in zip(_CHECKS, checks.T, strict=True):
        some = counted[name]
        if some.any():
            result[name] = share(right[some], captions[some])
    if relation.any():
        result.setdefault("caption_relation", Estimate(None, None))
        result["caption_relation_share"] = share(identified[relation], captions[relation])
    return result


def check_shapes(name: str, trained: Run) -> None:
    """Raises UserError where captions are not those of shapes, which alone can be read."""
    if trained.config.data.name != "shapes":
        raise UserError(f"--metrics={name} reads captions of shapes, and this run is of {trained.config.data.name}")


def check_template(template: str) -> None:
    """Raises UserError unless the sentence of zero-shot classification has one place for the name of a class."""
    if template.count("{}") != 1:
        raise UserError(f"--template={template}: a sentence with one {{}}, for the name of a class")


def retrieval(settings: Settings, trained: Run, examples: Examples) -> dict:
    """How often a CLIP finds a picture's caption among all, and a caption's picture: recall@k.

    Pictures of one caption answer for one another.
    """
    judge = Judge(trained.workdir.path, trained.spec, settings.batch_size)
    found, said = judge.pictures(examples.images), judge.texts(examples.captions)
    kinds = np.unique(np.asarray(examples.captions), return_inverse=True)[1]
    same = kinds[:, None] == kinds[None, :]
    result = {}
    print(f"retrieval among {len(found)} pictures of {settings.split}, {len(set(kinds))} captions, step {trained.step}")
    for name, (queries, answers) in {"text_of_image": (found, said), "image_of_text": (said, found)}.items():
        for k in _NEAREST:
            # k answers drawn at random hold one of m right ones among n: 1 - C(n - m, k) / C(n, k)
            n, m = len(found), same.sum(axis=1)
            chance = float(1 - np.prod([(n - m - i) / (n - i) for i in range(min(k, n))], axis=0).clip(0).mean())
            figure = share_and_error(alignment.recall(queries, answers, k=k, same=same), kinds)
            result[f"{name}_{k}"] = {**figure, "chance": chance}
            print(f"  {name.replace('_', ' ')}, recall@{k:<3} {percent_with_error(**figure)} (chance {chance:.1%})")
    return result | {"captions": len(set(kinds))}


def composition(settings: Settings, trained: Run, examples: Examples) -> dict:
    """How often a CLIP prefers a picture's caption to all that have one thing of it wrong (shapes.contradictions).

    As Yuksekgonul et al. 2023 ask whether CLIP reads captions as bags of words. A tie is counted against the caption.
    """
    check_shapes("composition", trained)
    judge = Judge(trained.workdir.path, trained.spec, settings.batch_size)
    wrong = [_wrong_captions(caption) for caption in examples.captions]
    captions = sorted(set(examples.captions).union(*(found for kinds in wrong for found in kinds.values())))
    places = {caption: place for place, caption in enumerate(captions)}
    images, texts = judge.pictures(examples.images), judge.texts(captions)
    print(f"{len(images)} pictures of {settings.split} and captions with one thing wrong, step {trained.step}")
    result = {}
    for kind in wrong[0]:
        right, chance, counted = [], [], []
        for image, caption, kinds in zip(images, examples.captions, wrong, strict=True):
            if kinds[kind]:
                others = texts[[places[other] for other in kinds[kind]]] @ image
                right.append(texts[places[caption]] @ image > others.max())
                chance.append(1 / (1 + len(others)))
                counted.append(caption)
        if len(right) > 1:
            figure = share_and_error(np.array(right), counted)
            result[kind] = {**figure, "chance": float(np.mean(chance)), "pictures": len(right)}
            print(f"  {kind:8} {percent_with_error(**figure)} (chance {np.mean(chance):.1%})")
    return result


def _wrong_captions(caption: str) -> dict[str, list[str]]:
    wrong = shapes.contradictions(shapes.parse(caption))
    return {kind: [shapes.sentence(each) for each in found] for kind, found in wrong.items()}


def zero_shot(settings: Settings, trained: Run, examples: Examples) -> dict:
    """How often the class whose sentence is nearest is a picture's own (Radford et al. 2021, section 3.1)."""
    check_template(settings.template)
    names = data.class_names(trained.config.data.name)
    judge = Judge(trained.workdir.path, trained.spec, settings.batch_size)
    sentences = [settings.template.format(name) for name in names]
    nearest = np.argmax(judge.pictures(examples.images) @ judge.texts(sentences).T, axis=1)
    figure = share_and_error(nearest == examples.labels)
    print(
        f"zero-shot classification of {len(nearest)} pictures of {settings.split} as {settings.template!r}, "
        f"{len(names)} classes, step {trained.step}\n  {percent_with_error(**figure)} (chance {1 / len(names):.1%})"
    )
    return {"accuracy": {**figure, "chance": 1 / len(names)}, "template": settings.template}
