"""Byte-pair tokenizers, with CLIP's vocabulary, that of GLIDE, or one that is trained on captions.

A text is cleaned and split into words, and the bytes of a word are merged pair by pair in the order in which the pairs
were learned (https://arxiv.org/abs/1508.07909). Every byte is a token, so there are no unknown words. CLIP
(https://arxiv.org/abs/2103.00020) marks the last byte of a word. In a trained vocabulary, a space belongs to the
following word, so that `decode` returns the cleaned text. GLIDE's vocabulary is that of GPT-2, of texts in lower case
that are not cleaned, and has no start and end tokens. With CLIP's published vocabulary, token ids are those of
OpenAI's code, except for characters that are newer than the Unicode version of `tokenizers`: their ids in OpenAI's code
depend on the version of `regex`. transformers does not repair texts with ftfy, as OpenAI's code does, so its ids differ
where that has an effect, such as for curly quotes.
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
_GZIP = b"\x1f\x8b"  # first bytes of a compressed file
_SUFFIX = "</w>"  # marks the last byte of a word in CLIP's vocabulary
_MERGES = 49152 - 256 - 2  # merges in CLIP's vocabulary; the published file has more
_ACCEPTED = (
    "use a tokenizer.json, a folder with it or with vocab.json and merges.txt, bpe_simple_vocab_16e6.txt.gz, or "
    "GLIDE's folder with encoder.json.gz and vocab.bpe.gz"
)
# Words of CLIP. OpenAI's pattern ignores case: for lower-case text this includes the long s, and excludes U+0345 (the
# iota below a letter) from the last class, because its capital is a letter.
_WORD = r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Maps texts to token ids and back; thread-safe."""

    bpe: tokenizers.Tokenizer = dataclasses.field(repr=False)
    start: int | None  # id of the start token; None: texts have no start and end
    end: int | None  # id of the end token
    vocabulary: int  # number of token ids

    def encode(self, texts: Sequence[str], length: int) -> Int32[np.ndarray, "N length"]:
        """Returns the token ids of each text: start, its pieces, end, then NO_TOKEN.

        A text that is too long is truncated before the end token; `overlong` counts its removed pieces. With GLIDE's
        vocabulary there are no start and end.

        Args:
          texts: N texts.
          length: tokens per text.

        Raises:
          UserError: a length below 3.
        """
        room = self._room(length)
        tokens = np.full((len(texts), length), NO_TOKEN, np.int32)
        for row, pieces in zip(tokens, self._pieces(texts), strict=True):
            ids = pieces[:room] if self.start is None else [self.start, *pieces[:room], self.end]
            row[: len(ids)] = ids
        return tokens

    def overlong(self, texts: Sequence[str], length: int) -> list[int]:
        """Returns the number of pieces that `encode` removes from each text; 0: none."""
        room = self._room(length)
        return [max(0, len(pieces) - room) for pieces in self._pieces(texts)]

    def pieces(self, text: str) -> list[int]:
        """Returns all ids of a text, without start and end."""
        return self._pieces([text])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, without start, end and NO_TOKEN. CLIP's vocabulary separates words and signs."""
        ids = [int(i) for i in ids]
        ids = [i for i in ids if i not in (self.start, self.end, NO_TOKEN)]
        return self.bpe.decode(ids, skip_special_tokens=False).strip(" ")

    def with_padding(self, padding: int) -> "Tokenizer":
        """Returns the tokenizer of transformers that pads with a token: the token's text is that token anywhere.

        Stable Diffusion 2 pads with "!", so that each "!" of a caption is the token of padding, and not a word.

        Args:
          padding: id of the token.
        """
        if padding in (self.start, self.end):
            return self
        bpe = tokenizers.Tokenizer.from_str(self.bpe.to_str())
        bpe.add_special_tokens([tokenizers.AddedToken(bpe.id_to_token(padding), normalized=False, special=True)])
        return dataclasses.replace(self, bpe=bpe)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a tokenizer.json for `load`, atomically."""
        io.write_text(Path(path), self.bpe.to_str())

    def _room(self, length: int) -> int:
        """Returns the number of pieces in a text of `length` tokens."""
        if length < 3:
            raise UserError(f"text.length={length}: is too short; use at least 3, as start and end are two tokens")
        return length if self.start is None else length - 2

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        texts = [_lower(text) if self.start is None else _clean(text) for text in texts]
        encodings = self.bpe.encode_batch_fast(texts, add_special_tokens=False)
        has_words = self.start is not None
        return [
            self._word_by_word(text) if has_words and (_START in text or _END in text) else encoding.ids
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _word_by_word(self, text: str) -> list[int]:
        """Returns the ids of a cleaned text; the names of start and end as words are these tokens, as in CLIP."""
        special, ids = {_START: self.start, _END: self.end}, []
        has_padding = bool(self.bpe.get_added_tokens_decoder())
        for word, (start, end) in self.bpe.pre_tokenizer.pre_tokenize_str(text):
            if word in special:
                ids.append(special[word])
            elif has_padding:
                ids += self.bpe.encode(text[start:end]).ids
            else:
                ids += [token.id for token in self.bpe.model.tokenize(word)]
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
    """Returns the tokenizer of a file or folder.

    Args:
      path: tokenizer.json, or a folder with it; CLIP's published vocabulary; or a folder with vocab.json and merges.txt
        (Hugging Face) or with encoder.json.gz and vocab.bpe.gz (GLIDE, GPT-2; also without gzip).

    Raises:
      UserError: a file is missing, cannot be read, is damaged or of another kind, or has more than MAX_BYTES before or
        after decompression; the message names it.
    """
    path = Path(path)
    if not path.is_dir():
        return _from_file(path)
    if (path / "tokenizer.json").exists():
        return _from_file(path / "tokenizer.json")
    names = ("encoder.json", "vocab.bpe") if any(path.glob("encoder.json*")) else ("vocab.json", "merges.txt")
    vocab_file, merges_file = (file if (file := path / name).exists() else path / f"{name}.gz" for name in names)
    if names[0] == "vocab.json":
        vocab_file, merges_file = (path / name for name in names)
    vocab = _read(vocab_file, lambda content: io.parse_json(_unpacked(content)))
    with _named(vocab_file):
        has_suffix = _START in vocab
        count = len(vocab.keys()) - (2 * len(_BYTES) + 2 if has_suffix else len(_BYTES) + (_END in vocab))
    merges = _read(merges_file, lambda content: _merges(_unpacked(content), count, exact=not has_suffix))
    with _named(path):
        return _build(vocab, merges, _SUFFIX if has_suffix else "")


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
        if content.startswith(_GZIP):
            merges = _merges(_unpacked(content), _MERGES)
            words = [*_BYTES, *(byte + _SUFFIX for byte in _BYTES), *map("".join, merges), _START, _END]
            return _build({word: i for i, word in enumerate(words)}, merges, _SUFFIX)
        fields = io.parse_json(content)
        model = fields["model"]
        merges = [
            pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]
        ]  # strings in old files
        tokenizer = _build(model["vocab"], merges, model["end_of_word_suffix"] or "")
        for token in fields.get("added_tokens", ()):
            text = token["content"]
            if token["special"] and text in model["vocab"] and text not in (_START, _END):
                tokenizer = tokenizer.with_padding(model["vocab"][text])
        return tokenizer

    return _read(path, parse)


def _unpacked(content: bytes) -> bytes:
    """Returns the content of a file that may be compressed. Raises ValueError if it is too large."""
    if not content.startswith(_GZIP):
        return content
    with gzip.GzipFile(fileobj=bytes_io.BytesIO(content)) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
    return content


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


def _lower(text: str) -> str:
    """Returns text as GLIDE's code prepares it: lower case. Surrogates, which no text has, become question marks."""
    return text.lower().encode("utf-8", "replace").decode("utf-8")


def _clean(text: str) -> str:
    """Returns text as cleaned by OpenAI's code: encoding repaired, entities replaced, single spaces, lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else it is clean, and ftfy is slow
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _merges(content: bytes, count: int, *, exact: bool = False) -> list[list[str]]:
    """Returns the first `count` pairs of a file with one pair per line, after a line with its version.

    Args:
      exact: whether more pairs are an error. CLIP's published file has more.
    """
    lines = content.decode("utf-8-sig").rstrip("\r\n").split("\n")[1:]
    merges = [line.split() for line in lines[: max(count, 0)]]
    if len(merges) != count or (exact and len(lines) != count):
        raise ValueError("the file is truncated, or of another vocabulary")
    return merges


def _build(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], suffix: str) -> Tokenizer:
    """Returns CLIP's tokenizer, or without a suffix that of `train`, or without a start token GLIDE's.

    Raises ValueError for inconsistent parts.
    """
    merges = [(first, second) for first, second in merges]
    has_ends = bool(suffix) or _START in vocab
    needed = {*_BYTES, *(byte + suffix for byte in _BYTES)} | ({_START, _END} if has_ends else set())
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
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_ends)
        bpe.decoder = decoders.ByteLevel()
    ends = (vocab[_START], vocab[_END]) if has_ends else (None, None)
    return Tokenizer(bpe, *ends, len(vocab))
