"""What samples are asked to show: labels, and captions where a system reads text."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffjax.data.sources import Example
from diffjax.data.tokenizer import Tokenizer
from diffjax.run import Run, open_source
from diffjax.systems.pixels import to_unit_range
from diffjax.typing import System


class Prompts(NamedTuple):
    """Of N samples."""

    # "label" [N]; "tokens" [N, L] where the system reads text; "original" [N, H, W, C], [-1, 1], of stages of a chain
    condition: dict[str, np.ndarray]
    captions: list[str] | None  # what the tokens say


def prompts(system: System, count: int, tokenizer: Tokenizer | None = None, captions: Sequence[str] = ()) -> Prompts:
    """Every class in turn; of a system that reads text the `captions`, again from the first where they are fewer."""
    labels = np.arange(count, dtype=np.int32) % max(system.classes, 1)
    if system.text is None:
        return Prompts({"label": labels}, None)
    said = [captions[i % len(captions)] for i in range(count)]
    return Prompts({"label": labels, "tokens": tokenizer.encode(said, system.text.length)}, said)


def of_examples(system: System, examples: Sequence[Example], tokenizer: Tokenizer | None = None) -> Prompts:
    """What a stage draws again of examples: their labels, captions and pictures."""
    condition = {
        "label": np.array([example["label"] for example in examples], np.int32),
        "original": np.asarray(to_unit_range(np.stack([example["image"] for example in examples]))),
    }
    captions = None
    if system.text:
        captions = [example["caption"] for example in examples]
        condition["tokens"] = tokenizer.encode(captions, system.text.length)
    return Prompts(condition, captions)


def of_run(trained: Run, count: int, *, split: str = "test", classes: int | None = None) -> Prompts:
    """For samples of a run: classes in turn (of another number where something guides it), captions of a split.

    Of a stage that is told more, the first examples of the split.
    """
    if trained.system.takes:
        source = open_source(trained.config, split)
        few = source.__getitems__(range(min(count, len(source))))
        return of_examples(trained.system, [few[i % len(few)] for i in range(count)], trained.tokenizer)
    captions = captions_of(open_source(trained.config, split), count) if trained.system.text else ()
    system = trained.system if classes is None else trained.system._replace(classes=classes)
    return prompts(system, count, trained.tokenizer, captions)


def captions_of(source, count: int) -> list[str]:
    """Those of the first examples of a source, each once."""
    found = {}
    for start in range(0, len(source), count):
        for example in source.__getitems__(range(start, min(start + count, len(source)))):
            found.setdefault(example["caption"])
            if len(found) == count:
                return list(found)
    return list(found)
