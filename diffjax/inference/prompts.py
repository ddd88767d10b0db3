"""What samples are asked to show: labels, and captions where a system reads text."""

import codecs
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffjax.data.sources import Example
from diffjax.data.tokenizer import Tokenizer
from diffjax.errors import UserError, note
from diffjax.models.pixels import to_unit_range
from diffjax.runs.loading import Run, open_source
from diffjax.typing import System

_MOST_NOTES = 5  # prompts that are named for being cut
_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32 LE begins as UTF-16 LE


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


def read_file(path: str | Path) -> list[str]:
    """Returns the prompts of a UTF-8 file, one a line as an editor shows them, without blank lines and outer spaces.

    A byte order mark is skipped. Lines end in LF, CR LF or CR, and in nothing else that Unicode calls a line break.

    Raises:
      UserError: the file cannot be read, is not UTF-8 text, has a control character, or has blank lines only.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read --prompts={path}: {error.strerror}") from error
    if content.startswith(_OTHER_ENCODINGS):
        raise UserError(f"--prompts={path}: the file is UTF-16 or UTF-32; save it as UTF-8")
    found = []
    for number, line in enumerate(re.split(rb"\r\n|\n|\r", content.removeprefix(codecs.BOM_UTF8)), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            wrong = f"line {number} is not UTF-8 (byte {line[error.start]:#04x} at {error.start})"
            raise UserError(f"--prompts={path}: {wrong}; save the file as UTF-8") from error
        check_text(f"--prompts={path}: line {number}", text)
        if text:
            found.append(text)
    if not found:
        raise UserError(f"--prompts={path}: every line is blank; write one prompt a line")
    return found


def check_text(name: str, text: str) -> None:
    """Raises UserError where `text`, which `name` names, has a control character other than a tab or a line break."""
    for character in text:
        if unicodedata.category(character) == "Cc" and character not in "\t\n\r":
            raise UserError(f"{name} has the control character {character!r}; save it as plain UTF-8 text")


def note_cut(tokenizer: Tokenizer, length: int, texts: Sequence[str], reader: str = "the model") -> None:
    """Prints a note for each text that has more tokens than `length`, of which two mark the start and the end.

    Args:
      reader: what reads the texts, for the note.
    """
    cut = [(i, count) for i, count in enumerate(tokenizer.overlong(texts, length), 1) if count]
    for i, count in cut[:_MOST_NOTES]:
        start = texts[i - 1] if len(texts[i - 1]) <= 60 else f"{texts[i - 1][:60]}..."
        read = length - 2
        note(f"prompt {i}, {start!r}: the last {count} of its {read + count} tokens are cut; {reader} reads {read}")
    if len(cut) > _MOST_NOTES:
        note(f"{len(cut) - _MOST_NOTES} more prompts are cut to the {length - 2} tokens that {reader} reads")
