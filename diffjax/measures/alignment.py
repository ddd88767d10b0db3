"""What is measured of pictures and captions: by a CLIP, and of scenes of shapes by reading the picture back."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from diffjax import data
from diffjax.data import shapes
from diffjax.errors import UserError
from diffjax.evals import alignment
from diffjax.evals.resampling import Estimate, share
from diffjax.judge import Judge
from diffjax.measures.settings import Examples, Settings, mean_and_error
from diffjax.run import Run

PARTS = ("captions", *(f"caption_{part}" for part in shapes.Check._fields))  # of a caption, the first for all at once
_CANDIDATES = 100  # captions that one is told from
_NEAREST = (1, 5, 10)  # how many answers a retrieval may give


def by_clip(
    judge: Judge, images: UInt8[np.ndarray, "N H W C"], captions: Sequence[str], *, seed: int
) -> Mapping[str, Estimate]:
    """The CLIP score and the retrieval precision of pictures of captions."""
    found, said = judge.pictures(images), judge.texts(captions)
    scores = mean_and_error(alignment.clip_score(found, said))
    right = alignment.retrieval_precision(found, said, captions, candidates=_CANDIDATES, seed=seed)
    return {"clip_score": Estimate(scores["mean"], scores["standard_error"]), "r_precision": share(right)}


def by_reading(images: UInt8[np.ndarray, "N H W C"], captions: Sequence[str]) -> dict[str, Estimate]:
    """The share of pictures of shapes that show what their caption says: all of it, and part by part.

    A caption that does not speak of a part is not counted for it.
    """
    checks = np.array([shapes.check(image, caption) for image, caption in zip(images, captions, strict=True)])
    said = [shapes.parse(caption) for caption in captions]
    speaks = np.ones_like(checks)
    speaks[:, shapes.Check._fields.index("relation")] = [description.relation is not None for description in said]
    speaks[:, shapes.Check._fields.index("size")] = [any(g.size for g in description.groups) for description in said]
    columns = [checks.all(axis=1), *(checks[speaks[:, i], i] for i in range(checks.shape[1]))]
    return {name: share(right) for name, right in zip(PARTS, columns, strict=True) if len(right)}


def check_shapes(name: str, trained: Run) -> None:
    """Raises UserError where captions are not those of shapes, which alone can be read."""
    if trained.config.data.name != "shapes":
        raise UserError(f"--metrics={name} reads captions of shapes, and this run is of {trained.config.data.name}")


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
            figure = mean_and_error(alignment.recall(queries, answers, k=k, same=same))
            result[f"{name}_{k}"] = {**figure, "chance": chance}
            print(
                f"  {name.replace('_', ' ')}, recall@{k:<3} {figure['mean']:6.1%} +- {figure['standard_error']:.1%} "
                f"(chance {chance:.1%})"
            )
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
        right, chance = [], []
        for image, caption, kinds in zip(images, examples.captions, wrong, strict=True):
            if kinds[kind]:
                others = texts[[places[other] for other in kinds[kind]]] @ image
                right.append(texts[places[caption]] @ image > others.max())
                chance.append(1 / (1 + len(others)))
        if len(right) > 1:  # else it has no error
            result[kind] = {**mean_and_error(np.array(right)), "chance": float(np.mean(chance)), "pictures": len(right)}
            print("  {0:8} {mean:6.1%} +- {standard_error:.1%} (chance {chance:.1%})".format(kind, **result[kind]))
    return result


def _wrong_captions(caption: str) -> dict[str, list[str]]:
    wrong = shapes.contradictions(shapes.parse(caption))
    return {kind: [shapes.sentence(each) for each in found] for kind, found in wrong.items()}


def zero_shot(settings: Settings, trained: Run, examples: Examples) -> dict:
    """How often the class whose sentence is nearest is a picture's own (Radford et al. 2021, section 3.1)."""
    names = data.class_names(trained.config.data.name)
    if settings.template.count("{}") != 1:
        raise UserError(f"--template={settings.template}: a sentence with one {{}}, for the name of a class")
    judge = Judge(trained.workdir.path, trained.spec, settings.batch_size)
    sentences = [settings.template.format(name) for name in names]
    nearest = np.argmax(judge.pictures(examples.images) @ judge.texts(sentences).T, axis=1)
    figure = mean_and_error(nearest == examples.labels)
    print(
        f"zero-shot classification of {len(nearest)} pictures of {settings.split} as {settings.template!r}, "
        f"{len(names)} classes, step {trained.step}\n  {figure['mean']:6.1%} +- {figure['standard_error']:.1%} "
        f"(chance {1 / len(names):.1%})"
    )
    return {"accuracy": figure, "template": settings.template}
