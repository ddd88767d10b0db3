"""Conditions of samples: class labels, and captions with their tokens for text-conditioned models."""

import codecs
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax import numpy as jnp
from jaxtyping import Int

from diffjax.data.cache import Example
from diffjax.data.examples import Source
from diffjax.data.tokenizer import Tokenizer
from diffjax.errors import UserError, note, validate_number
from diffjax.models.base import Model
from diffjax.models.capabilities import is_text_conditioned, is_upsampling_stage
from diffjax.models.images import to_unit_range
from diffjax.parsing import entries
from diffjax.parsing import number as parse_number
from diffjax.runs.datasets import open_prompts
from diffjax.runs.loading import Run

_MAX_NOTES = 5  # number of truncated prompts that are listed one by one
_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32 LE begins as UTF-16 LE


class Prompts(NamedTuple):
    """Conditions of N samples.

    Attributes:
      conditions: arrays [N, ...] by name: "label" int32 [N]; "tokens" int32 [N, L] for text-conditioned models, and
        "negative_tokens" of the negative prompt;
        "number" float32 [N], in the place of the setting of this name; "original" [N, H, W, C] in [-1, 1] for pipeline
        stages conditioned on an image; and what edits add.
      captions: text of "tokens"; None for models without text.
    """

    conditions: dict[str, np.ndarray]
    captions: list[str] | None

    @property
    def size(self) -> int:
        return len(self.conditions["label"])


def make_prompts(
    system: Model,
    count: int,
    tokenizer: Tokenizer | None = None,
    captions: Sequence[str] = (),
    *,
    classes: int | None = None,
) -> Prompts:
    """Returns conditions of `count` samples: the classes in turn, and for text-conditioned models `captions` in turn.

    Args:
      tokenizer: encodes the captions; required for text-conditioned models.
      captions: at least one for text-conditioned models; repeated in order if there are fewer than `count`.
      classes: number of classes; None: that of the model. A guiding classifier can have more.
    """
    labels = np.arange(count, dtype=np.int32) % max(system.classes if classes is None else classes, 1)
    if system.text is None:
        return Prompts({"label": labels}, None)
    if tokenizer is None:
        raise ValueError("a text-conditioned model requires a tokenizer")
    captions = [captions[i % len(captions)] for i in range(count)]
    return Prompts({"label": labels, "tokens": tokenizer.encode(captions, system.text.length)}, captions)


def encode_captions(trained: Run, captions: Sequence[str]) -> Int[np.ndarray, "N L"]:
    """Returns the tokens of captions for a text-conditioned run; prints a note for each truncated caption."""
    tokenizer, text = trained.tokenizer, trained.system.text
    if tokenizer is None or text is None:
        raise ValueError("captions require a text-conditioned model")
    note_truncated(tokenizer, text.length, captions)
    return tokenizer.encode(captions, text.length)


def prompts_from_examples(system: Model, examples: Sequence[Example], tokenizer: Tokenizer | None = None) -> Prompts:
    """Returns the labels, captions and images of examples, as conditions of a pipeline stage."""
    conditions = {
        "label": np.array([example["label"] for example in examples], np.int32),
        "original": np.asarray(to_unit_range(jnp.asarray(np.stack([example["image"] for example in examples])))),
    }
    if system.text is None or tokenizer is None:
        return Prompts(conditions, None)
    captions = [example["caption"] for example in examples]
    return Prompts(conditions | {"tokens": tokenizer.encode(captions, system.text.length)}, captions)


def sample_prompts(
    trained: Run,
    classes: int,
    num: int,
    captions: Sequence[str] = (),
    label: int | Sequence[int] | None = None,
    negative_prompt: str | None = None,
) -> tuple[Prompts, int]:
    """Returns conditions of samples, and the number of images per condition: `num` per caption, or one per label.

    Args:
      classes: number of classes of the model, with those of a guiding classifier.
      num: number of images per caption for text-conditioned runs, or of all images.
      captions: at least one for text-conditioned runs.
      label: class of all images, or of each of the `num`; None: the classes in turn.
      negative_prompt: caption that guidance moves away from, for text-conditioned runs; None: the null caption.

    Raises:
      UserError: a text-conditioned run without captions, or a label that the run does not have.
    """
    if is_text_conditioned(trained.system):
        if not captions:
            raise UserError("this run is text-conditioned: pass --prompt=TEXT or --prompts=FILE")
        labels = np.arange(len(captions), dtype=np.int32) % max(classes, 1)
        conditions = {"label": labels, "tokens": encode_captions(trained, captions)}
        if negative_prompt is not None:
            negative = encode_captions(trained, [negative_prompt])
            conditions["negative_tokens"] = negative.repeat(len(captions), axis=0)
        return Prompts(conditions, list(captions)), num
    if label is None:
        return Prompts({"label": np.arange(num, dtype=np.int32) % max(classes, 1)}, None), 1
    for one in np.unique(label):
        check_label(one, classes)
    return Prompts({"label": np.broadcast_to(np.asarray(label, np.int32), num).copy()}, None), 1


def take_numbers(flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[float]]:
    """Returns flags of sampling settings without a "number" of several values, and these values, else [].

    Raises:
      UserError: a value is not a number.
    """
    text = flags.get("number") or ""
    if "," not in text or ":" in text:  # one value, or one per stage of a pipeline
        return dict(flags), []
    try:
        values = [parse_number(entry) for entry in entries("number", text)]
    except ValueError as error:
        raise UserError(f"--number={text}: must be numbers separated by commas") from error
    return {**flags, "number": f"{values[0]:g}"}, values


def with_numbers(trained: Run, prompts: Prompts, numbers: Sequence[float]) -> Prompts:
    """Returns prompts with the numbers in turn as the condition of this name.

    Raises:
      UserError: a number out of the range of the run.
    """
    if not numbers:
        return prompts
    section = trained.config.conditions.number
    for value in numbers:
        validate_number("--number", value, section.get("low", 0.0), section.get("high", 1.0))
    in_turn = np.resize(np.array(numbers, np.float32), prompts.size)
    return prompts._replace(conditions={**prompts.conditions, "number": in_turn})


def default_prompts(trained: Run, count: int, *, split: str = "test", classes: int | None = None) -> Prompts:
    """Returns conditions of a run's samples: classes in turn, and captions of `split` for text-conditioned models.

    Stages that are conditioned on an image use the first examples of `split`; with captions, the first example of each
    caption, so that all text-conditioned models have the same captions.

    Args:
      classes: number of classes; None: that of the model.
    """
    if is_upsampling_stage(trained.system):
        source = open_prompts(trained.config, split)
        indices = range(min(count, len(source)))
        if is_text_conditioned(trained.system):
            indices = [*_first_of_captions(source, count).values()]
        examples = source.__getitems__(indices)
        examples = [examples[i % len(examples)] for i in range(count)]
        return prompts_from_examples(trained.system, examples, trained.tokenizer)
    captions = []
    if is_text_conditioned(trained.system):
        captions = unique_captions(open_prompts(trained.config, split), count)
    return make_prompts(trained.system, count, trained.tokenizer, captions, classes=classes)


def unique_captions(source: Source, count: int) -> list[str]:
    """Returns the first `count` distinct captions of a source, or all if there are fewer."""
    return list(_first_of_captions(source, count))


def _first_of_captions(source: Source, count: int) -> dict[str, int]:
    """Returns the index of the first example of each of the first `count` distinct captions of a source."""
    first: dict[str, int] = {}
    for start in range(0, len(source), count):
        indices = range(start, min(start + count, len(source)))
        for i, caption in zip(indices, source.captions(indices), strict=True):
            first.setdefault(caption, i)
            if len(first) == count:
                return first
    return first


def read_file(path: str | Path) -> list[str]:
    """Returns the prompts of a UTF-8 file, one per line, without blank lines and surrounding spaces.

    A byte order mark is skipped. Lines end in LF, CR LF or CR; other line breaks of Unicode are part of a prompt.

    Raises:
      UserError: the file cannot be read, is not UTF-8 text, has a control character, or has blank lines only.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--prompts={path}: cannot be read ({error.strerror}); name a UTF-8 text file") from error
    if content.startswith(_OTHER_ENCODINGS):
        raise UserError(f"--prompts={path}: the file is UTF-16 or UTF-32; save it as UTF-8")
    prompts = []
    for number, line in enumerate(re.split(rb"\r\n|\n|\r", content.removeprefix(codecs.BOM_UTF8)), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            problem = f"line {number} is not UTF-8 (byte {line[error.start]:#04x} at {error.start})"
            raise UserError(f"--prompts={path}: {problem}; save the file as UTF-8") from error
        check_text(f"--prompts={path}: line {number}", text)
        if text:
            prompts.append(text)
    if not prompts:
        raise UserError(f"--prompts={path}: every line is blank; write one prompt per line")
    return prompts


def check_label(label: int, classes: int) -> None:
    """Raises UserError for a label that a run with `classes` classes does not have."""
    if not 0 <= label < classes:
        problem = f"must be from 0 to {classes - 1}" if classes else "this run was trained without labels; remove it"
        raise UserError(f"--label={label}: {problem}")


def check_text(name: str, text: str) -> None:
    """Raises UserError if a text has a control character other than tab and line breaks.

    Args:
      name: source of the text, for the message.
    """
    for character in text:
        if unicodedata.category(character) == "Cc" and character not in "\t\n\r":
            raise UserError(f"{name} has the control character {character!r}; save it as plain UTF-8 text")


def note_truncated(tokenizer: Tokenizer, length: int, captions: Sequence[str], reader: str = "the model") -> None:
    """Prints a note for each caption with more tokens than the model reads.

    Args:
      length: number of tokens that the model reads, including the start and end tokens.
      reader: the model, for the note.
    """
    cut = [(i, count) for i, count in enumerate(tokenizer.overlong(captions, length), 1) if count]
    read = length - 2
    for i, count in cut[:_MAX_NOTES]:
        start = captions[i - 1] if len(captions[i - 1]) <= 60 else f"{captions[i - 1][:60]}..."
        note(f"prompt {i}, {start!r}: the last {count} of its {read + count} tokens are cut; {reader} reads {read}")
    if len(cut) > _MAX_NOTES:
        note(f"{len(cut) - _MAX_NOTES} more prompts are cut to the {read} tokens that {reader} reads")
