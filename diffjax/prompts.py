"""What samples are asked to show: labels, and captions where a system reads text."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffjax.data.tokenizer import Tokenizer
from diffjax.typing import System
from diffjax.workdir import Run, open_source


class Prompts(NamedTuple):
    """Of N samples."""

    condition: dict[str, np.ndarray]  # "label" [N]; "tokens" [N, L] where the system reads text
    captions: list[str] | None  # what the tokens say


def prompts(system: System, count: int, tokenizer: Tokenizer | None = None, captions: Sequence[str] = ()) -> Prompts:
    """Every class in turn; of a system that reads text the `captions`, again from the first where they are fewer."""
    labels = np.arange(count, dtype=np.int32) % max(system.classes, 1)
    if system.text is None:
        return Prompts({"label": labels}, None)
    said = [captions[i % len(captions)] for i in range(count)]
    return Prompts({"label": labels, "tokens": tokenizer.encode(said, system.text.length)}, said)


def of_run(trained: Run, count: int, *, split: str = "test", classes: int | None = None) -> Prompts:
    """For samples of a run: classes in turn (of another number where something guides it), captions of a split."""
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
