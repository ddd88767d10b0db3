"""Byte-pair tokenizers, with CLIP's vocabulary or one that is trained on captions.

A text is cleaned and split into words, and the bytes of a word are merged pair by pair in the order in which the pairs
were learned (https://arxiv.org/abs/1508.07909). Every byte is a token, so there are no unknown words. CLIP
(https://arxiv.org/abs/2103.00020) marks the last byte of a word. In a trained vocabulary, a space belongs to the
following word, so that `decode` returns the cleaned text. With CLIP's published vocabulary, token ids are those of
OpenAI's code, except for characters that are newer than the Unicode version of `tokenizers`: their ids in OpenAI's code
depend on the version of `regex`.
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

# Batches are read by threads already; older versions of `tokenizers` print warnings about threads after a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

T = TypeVar("T")
MAX_BYTES = 2**24  # per tokenizer file, and after decompression; CLIP's have at most 4 MB

_START, _END = "<|startoftext|>", "<|endoftext|>"
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # one printable character per byte, in the order of CLIP's ids
_SUFFIX = "</w>"  # marks the last byte of a word in CLIP's vocabulary
_MERGES = 49152 - 256 - 2  # merges in CLIP's vocabulary; the published file has more
_ACCEPTED = "use a tokenizer.json, a folder with it or with vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt.gz"
# Words of CLIP. OpenAI's pattern ignores case: for lower-case text this includes the long s, and excludes U+0345 (the
# iota below a letter) from the last class, because its capital is a letter.
_WORD = r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Maps texts to token ids and back; thread-safe."""

    bpe: tokenizers.Tokenizer = dataclasses.field(repr=False)
    start: int  # id of the start token
    end: int  # id of the end token
    vocabulary: int  # number of token ids

    def encode(self, texts: Sequence[str], length: int) -> Int32[np.ndarray, "N length"]:
        """Returns the token ids of each text: start, its pieces, end, then NO_TOKEN.

        A text that is too long is truncated before the end token; `overlong` counts its removed pieces.

        Args:
          texts: N texts.
          length: tokens per text.

        Raises:
          UserError: a length below 3.
        """
        room = _room(length)
        tokens = np.full((len(texts), length), NO_TOKEN, np.int32)
        for row, pieces in zip(tokens, self._pieces(texts), strict=True):
            row[: len(pieces) + 2] = [self.start, *pieces[:room], self.end]
        return tokens

    def overlong(self, texts: Sequence[str], length: int) -> list[int]:
        """Returns the number of pieces that `encode` removes from each text; 0: none."""
        room = _room(length)
        return [max(0, len(pieces) - room) for pieces in self._pieces(texts)]

    def pieces(self, text: str) -> list[int]:
        """Returns all ids of a text, without start and end."""
        return self._pieces([text])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, without start, end and NO_TOKEN. CLIP's vocabulary separates words and signs."""
        ids = [int(i) for i in ids]
        return self.bpe.decode([i for i in ids if i not in (self.start, self.end, NO_TOKEN)]).strip(" ")

    def save(self, path: str | os.PathLike) -> None:
        """Writes a tokenizer.json for `load`, atomically."""
        io.write_text(Path(path), self.bpe.to_str())

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        texts = [_clean(text) for text in texts]
        encodings = self.bpe.encode_batch_fast(texts, add_special_tokens=False)
        return [
            self._word_by_word(text) if _START in text or _END in text else encoding.ids
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _word_by_word(self, text: str) -> list[int]:
        """Returns the ids of a cleaned text; the names of start and end as words are these tokens, as in CLIP."""
        special, ids = {_START: self.start, _END: self.end}, []
        for word, _ in self.bpe.pre_tokenizer.pre_tokenize_str(text):
            ids += [special[word]] if word in special else [token.id for token in self.bpe.model.tokenize(word)]
        return ids


def train(captions: Iterable[str], vocabulary: int) -> Tokenizer:
    """Trains a tokenizer on captions. Equal captions give equal ids.

    Args:
      captions: training texts.
      vocabulary: maximum number of ids. There are fewer if no pair of pieces occurs twice.

    Raises:
      UserError: a vocabulary below 258, the bytes and start and end.

    Reference: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.
    """
    smallest = len(_BYTES) + 2
    if vocabulary < smallest:
        raise UserError(
            f"text.vocabulary={vocabulary}: is too small; use at least {smallest}, for 256 bytes, start and end"
        )
    learned = tokenizers.Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    options = {"initial_alphabet": _BYTES, "min_frequency": 2, "show_progress": False}
    learned.train_from_iterator(map(_clean, captions), trainers.BpeTrainer(vocab_size=vocabulary - 2, **options))
    model = json.loads(learned.to_str())["model"]
    count = len(model["vocab"])
    return _build(model["vocab"] | {_START: count, _END: count + 1}, model["merges"], suffix="")


def load(path: str | os.PathLike) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, of CLIP's published vocabulary, or of a CLIP's Hugging Face folder.

    Raises:
      UserError: a file is missing, cannot be read, is damaged or of another kind, or has more than MAX_BYTES before or
        after decompression; the message names it.
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


def vocabulary_and_merges(tokenizer: Tokenizer) -> tuple[dict[str, int], list[list[str]]]:
    """Returns the ids of all tokens and the merges of a tokenizer with CLIP's kind of vocabulary.

    Raises:
      UserError: the tokenizer was trained on captions, without marks of the last byte of a word.
    """
    model = json.loads(tokenizer.bpe.to_str())["model"]
    if model["end_of_word_suffix"] != _SUFFIX:
        raise UserError(
            "text.tokenizer='': a tokenizer that was trained on captions cannot be exported to transformers; train "
            "with CLIP's vocabulary"
        )
    return dict(sorted(model["vocab"].items(), key=lambda item: item[1])), model["merges"]


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
        merges = [
            pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]
        ]  # strings in old files
        return _build(model["vocab"], merges, model["end_of_word_suffix"] or "")

    return _read(path, parse)


def _read(path: Path, parse: Callable[[bytes], T]) -> T:
    """Returns the parsed content of a file. Raises UserError with its name if it is missing or damaged."""
    with _named(path):
        return parse(io.read_bytes(path, MAX_BYTES))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns errors from a missing or damaged file into a UserError with its name."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist; {_ACCEPTED}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = excerpt(str(error), 100) or type(error).__name__
        raise UserError(f"{path}: is not a tokenizer, or is damaged ({reason}); {_ACCEPTED}") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): {_ACCEPTED}") from error


def _clean(text: str) -> str:
    """Returns text as cleaned by OpenAI's code: encoding repaired, entities replaced, single spaces, lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else it is clean, and ftfy is slow
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _room(length: int) -> int:
    """Returns the number of pieces between start and end."""
    if length < 3:
        raise UserError(f"text.length={length}: is too short; use at least 3, as start and end are two tokens")
    return length - 2


def _merges(content: bytes, count: int) -> list[list[str]]:
    """Returns the first `count` pairs of a file with one pair per line, after a line with its version."""
    merges = [line.split() for line in content.decode("utf-8-sig").split("\n")[1 : max(count, 0) + 1]]
    if len(merges) != count:
        raise ValueError("the file is truncated")
    return merges


def _build(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], suffix: str) -> Tokenizer:
    """Returns CLIP's tokenizer, or without a suffix that of `train`. Raises ValueError for inconsistent parts."""
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
    bpe = tokenizers.Tokenizer(models.BPE(dict(vocab), merges, end_of_word_suffix=suffix))
    if suffix:
        words = pre_tokenizers.Split(tokenizers.Regex(_WORD), behavior="removed", invert=True)
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        bpe.decoder = decoders.Sequence([decoders.Replace(suffix, "Ġ"), decoders.ByteLevel()])  # Ġ is a space as a byte
    else:
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        bpe.decoder = decoders.ByteLevel()
    return Tokenizer(bpe, vocab[_START], vocab[_END], len(vocab))
