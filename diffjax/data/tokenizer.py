"""Texts as tokens: byte pairs, by CLIP's vocabulary or by one that is trained on captions.

A text is cleaned and split into words, and the bytes of a word are joined pair by pair in the order in which the pairs
were learnt (https://arxiv.org/abs/1508.07909). Every byte is a token by itself, so nothing is ever unknown. CLIP
(https://arxiv.org/abs/2103.00020) marks the last byte of a word; in a trained vocabulary a space belongs to the word
behind it, so that `decode` gives back the cleaned text. With CLIP's published vocabulary the ids are those of OpenAI's
code, but for letters and numerals that are newer than the Unicode `tokenizers` knows: there that code's ids depend on
its version of `regex`.
"""

import contextlib
import dataclasses
import gzip
import html
import io as bytes_io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.typing import NO_TOKEN

# Threads of its own gain nothing beside those that read batches, and older versions complain of them after a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

T = TypeVar("T")
MAX_BYTES = 2**24  # of a tokenizer's file, and of what a gzip file unpacks to; CLIP's have 4 MB at most

_START, _END = "<|startoftext|>", "<|endoftext|>"
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # a printable character for each, in the order of CLIP's ids
_SUFFIX = "</w>"  # of the last byte of a word, in CLIP's vocabulary
_MERGES = 49152 - 256 - 2  # pairs of CLIP's vocabulary; the published file has more
_ACCEPTED = "give a tokenizer.json, a folder with it or with vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt.gz"
# CLIP's words. OpenAI's pattern ignores case: in text that is lower case already this adds the long s, and takes from
# the last class the iota below a letter, U+0345, as its capital is a letter.
_WORD = r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """From texts to tokens and back; several threads may use one."""

    bpe: tokenizers.Tokenizer = dataclasses.field(repr=False)
    start: int
    end: int
    vocabulary: int  # ids are below it

    def encode(self, texts: Sequence[str], length: int) -> Int32[np.ndarray, "N length"]:
        """Each text as start, its pieces, end, and NO_TOKEN from there on.

        Of a text that is too long the last pieces are cut, never the end: `overlong` says how many.

        Raises:
          UserError: a length below 3.
        """
        room = _room(length)
        tokens = np.full((len(texts), length), NO_TOKEN, np.int32)
        for row, pieces in zip(tokens, self._pieces(texts), strict=True):
            row[: len(pieces) + 2] = [self.start, *pieces[:room], self.end]
        return tokens

    def overlong(self, texts: Sequence[str], length: int) -> list[int]:
        """How many pieces `encode` cuts from each text; 0 where it fits."""
        room = _room(length)
        return [max(0, len(pieces) - room) for pieces in self._pieces(texts)]

    def pieces(self, text: str) -> list[int]:
        """The ids of a text without start and end, however many there are."""
        return self._pieces([text])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without start, end and NO_TOKEN. With CLIP's vocabulary words and signs stand apart."""
        ids = [int(i) for i in ids]
        return self.bpe.decode([i for i in ids if i not in (self.start, self.end, NO_TOKEN)]).strip(" ")

    def save(self, path: str | os.PathLike) -> None:
        """Writes a tokenizer.json for `load`. The write is atomic."""
        io.write_text(path, self.bpe.to_str())

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        texts = [_clean(text) for text in texts]
        found = self.bpe.encode_batch_fast(texts, add_special_tokens=False)
        named = [_START in text or _END in text for text in texts]
        return [self._word_by_word(t) if n else f.ids for t, n, f in zip(texts, named, found, strict=True)]

    def _word_by_word(self, text: str) -> list[int]:
        """For a cleaned text that may have the names of start and end as words, which CLIP takes for these."""
        named, ids = {_START: self.start, _END: self.end}, []
        for word, _ in self.bpe.pre_tokenizer.pre_tokenize_str(text):
            ids += [named[word]] if word in named else [token.id for token in self.bpe.model.tokenize(word)]
        return ids


def train(captions: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of at most `vocabulary` ids; fewer where no two pieces are left that meet twice.

    The same captions give the same ids.

    Raises:
      UserError: a vocabulary below 258, the bytes and start and end.
    """
    least = len(_BYTES) + 2
    if vocabulary < least:
        raise UserError(f"a vocabulary of {vocabulary} is too small: use at least {least}, 256 bytes and start and end")
    learnt = tokenizers.Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    options = {"initial_alphabet": _BYTES, "min_frequency": 2, "show_progress": False}
    learnt.train_from_iterator(map(_clean, captions), trainers.BpeTrainer(vocab_size=vocabulary - 2, **options))
    model = json.loads(learnt.to_str())["model"]
    count = len(model["vocab"])
    return _build(model["vocab"] | {_START: count, _END: count + 1}, model["merges"], suffix="")


def load(path: str | os.PathLike) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, of CLIP's published vocabulary, or of a CLIP's Hugging Face folder.

    Raises:
      UserError: a file is missing, cannot be read, is damaged or of another kind, or has more than MAX_BYTES, as it is
        or unpacked; the message names it.
    """
    path = Path(path)
    if not path.is_dir():
        return _from_file(path)
    if (path / "tokenizer.json").exists():
        return _from_file(path / "tokenizer.json")
    vocab = _read(path / "vocab.json", io.parse_json)
    with _named(path / "vocab.json"):
        count = len(vocab.keys()) - 2 * len(_BYTES) - 2
    merges = _read(path / "merges.txt", lambda content: _merges(content, count))
    with _named(path):
        return _build(vocab, merges, _SUFFIX)


def _from_file(path: Path) -> Tokenizer:
    def parse(content: bytes) -> Tokenizer:
        if content.startswith(b"\x1f\x8b"):  # gzip
            with gzip.GzipFile(fileobj=bytes_io.BytesIO(content)) as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
            merges = _merges(content, _MERGES)
            words = [*_BYTES, *(byte + _SUFFIX for byte in _BYTES), *map("".join, merges), _START, _END]
            return _build({word: i for i, word in enumerate(words)}, merges, _SUFFIX)
        model = io.parse_json(content)["model"]
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]  # strings, of old
        return _build(model["vocab"], merges, model["end_of_word_suffix"] or "")

    return _read(path, parse)


def _read(path: Path, parse: Callable[[bytes], T]) -> T:
    """Returns what `parse` makes of a file. Raises UserError, which names it, if it is missing or damaged."""
    with _named(path):
        return parse(io.read_bytes(path, MAX_BYTES))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns what reading a missing or damaged file raises into a UserError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}: {_ACCEPTED}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = excerpt(str(error), 100) or type(error).__name__
        raise UserError(f"{path} is no tokenizer, or is damaged ({reason}): {_ACCEPTED}") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): {_ACCEPTED}") from error


def _clean(text: str) -> str:
    """As OpenAI's code does: mended, its entities replaced, in single spaces and lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else there is nothing to do, and ftfy is slow
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _room(length: int) -> int:
    """Pieces that fit between start and end."""
    if length < 3:
        raise UserError(f"texts of {length} tokens are too short: use at least 3, as start and end are two of them")
    return length - 2


def _merges(content: bytes, count: int) -> list[list[str]]:
    """The first pairs of a file with one a line, behind a line that says its version."""
    merges = [line.split() for line in content.decode("utf-8-sig").split("\n")[1 : max(count, 0) + 1]]
    if len(merges) != count:
        raise ValueError("the file is cut")
    return merges


def _build(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], suffix: str) -> Tokenizer:
    """With a suffix CLIP's tokenizer, without one that of `train`. Raises ValueError where the parts do not fit."""
    merges = [(first, second) for first, second in merges]
    needed = {_START, _END, *_BYTES, *(byte + suffix for byte in _BYTES)}
    needed.update(word for first, second in merges for word in (first, second, first + second))
    ids = vocab.values()
    if (
        not all(type(i) is int and 0 <= i < len(vocab) for i in ids)
        or len({*ids}) < len(vocab)
        or needed - vocab.keys()
    ):
        raise ValueError("the vocabulary has gaps")
    bpe = tokenizers.Tokenizer(models.BPE(vocab, merges, end_of_word_suffix=suffix))
    if suffix:
        words = pre_tokenizers.Split(tokenizers.Regex(_WORD), behavior="removed", invert=True)
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        bpe.decoder = decoders.Sequence([decoders.Replace(suffix, "Ġ"), decoders.ByteLevel()])  # Ġ is a space as a byte
    else:
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        bpe.decoder = decoders.ByteLevel()
    return Tokenizer(bpe, vocab[_START], vocab[_END], len(vocab))
