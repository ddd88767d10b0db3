"""Tokenizers: CLIP's ids against byte-pair encoding by its definition, decoding, and errors of files."""

import concurrent.futures
import gzip
import html
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import time
import tracemalloc
import unicodedata

import ftfy
import numpy as np
import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffjax.data import tokenizer
from diffjax.errors import UserError
from diffjax.typing import NO_TOKEN

START, END = "<|startoftext|>", "<|endoftext|>"
FILE = "bpe_simple_vocab_16e6.txt.gz"

# --- byte-pair encoding by its definition, with the libraries of OpenAI's code


def alphabet():
    """Returns a printable character for each byte: itself if printable, otherwise the next one from 256."""
    itself = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in itself]
    return {byte: chr(byte if byte in itself else 256 + others.index(byte)) for byte in range(256)}


def cleaned(text):
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


class Reference:
    words = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        regex.IGNORECASE,
    )

    def __init__(self, merges):
        self.bytes = alphabet()
        single = sorted(self.bytes.values())
        self.vocab = [*single, *(byte + "</w>" for byte in single), *map("".join, merges), START, END]
        self.ids = {word: i for i, word in enumerate(self.vocab)}
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.known = {START: [self.ids[START]], END: [self.ids[END]]}

    def word(self, word):
        """Joins all occurrences of the pair that was learned first, from the left, until no pair is left."""
        if word not in self.known:
            *parts, last = (self.bytes[byte] for byte in word.encode())
            parts.append(last + "</w>")
            while pairs := [pair for pair in itertools.pairwise(parts) if pair in self.rank]:
                first, joined, i = min(pairs, key=self.rank.get), [], 0
                while i < len(parts):
                    both = tuple(parts[i : i + 2]) == first
                    joined.append("".join(parts[i : i + 1 + both]))
                    i += 1 + both
                parts = joined
            self.known[word] = [self.ids[part] for part in parts]
        return self.known[word]

    def __call__(self, text):
        return [i for word in self.words.findall(cleaned(text)) for i in self.word(word)]


def small_merges():
    """Merges that build some words from the left, byte by byte."""
    merges = {}
    words = (
        "the he hello world photo cat cats 's 've 'll !! !!! ... <| |> <|s startof text été straße 日本 ки привет 👍🏽"
    )
    for word in words.split():
        first, *others = (alphabet()[byte] for byte in word.encode())
        for i, byte in enumerate(others, 1):
            last = i == len(others)
            merges[first, byte + "</w>" * last] = None
            merges[first, byte] = None
            first += byte
    return list(merges)


def write_folder(folder, merges):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(Reference(merges).ids))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def published_merges(path):
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [tuple(line.split()) for line in lines[1 : 1 + 48_894]]


@pytest.fixture(scope="session")
def published(real):
    path = real / "clip" / FILE
    if not path.exists():
        pytest.skip(f"DIFFJAX_DATA has no clip/{FILE}")
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The folder of a CLIP tokenizer with a small vocabulary."""
    return write_folder(tmp_path_factory.mktemp("clip") / "small", small_merges())


@pytest.fixture(scope="session", params=["small", "published"])
def both(request):
    """A CLIP tokenizer and its reference."""
    path = request.getfixturevalue(request.param)
    merges = small_merges() if request.param == "small" else published_merges(path)
    return tokenizer.load(path), Reference(merges)


# --- texts

SCRIPTS = """
Ελληνικά ΟΔΟΣ Σίσυφος ὈΔΥΣΣΕΎΣ ᾳ ᾼ|русский язык ПРИВЕТ ё|עברית שָׁלוֹם עולם|العربية مَرْحَبًا ١٢٣
فارسی ۱۲۳ می‌خواهم|हिन्दी नमस्ते १२३|বাংলা ভাষা|ਪੰਜਾਬੀ|தமிழ் வணக்கம்|తెలుగు|ಕನ್ನಡ|മലയാളം ൧൨|සිංහල
ภาษาไทย สวัสดี ๑๒|ລາວ|བོད་སྐད|မြန်မာ|ខ្មែរ ១២|ქართული ᲥᲐᲠᲗᲣᲚᲘ|Հայերեն ԲԱՐԵՎ և|አማርኛ ፩፪|ᏣᎳᎩ ꮳꮃꭹ|ᠮᠣᠩᠭᠣᠯ
日本語 カタカナ ひらがな|ｶﾀｶﾅ ﾊﾞ|中文 漢字 二〇二四|한국어 조선말|한글|粵語 𠮷野家 𡃁|Tiếng Việt phở|Íslenska ÞÓRR
İstanbul ISPARTA ılık Iğdır|STRASSE straße Maẞ GROẞ|Ǆ ǅ ǆ Ǉ ǈ|ﬁ ﬂ ﬀ ﬃ ﬄ ﬅ ﬆ|Ａｂｃ １２３ ！＃％
Ⅷ ⅷ ⅞ ½ ² ₃ ① ⑳ ㊿ Ⓐ ⓐ|𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚 𝓐|ſtrange wiſdom|ŒUVRE œuvre Æsir|\u212aelvin \u212bngstrom \u2126 ℵ
e\u0301te\u0301 ÉTÉ|a\u0301\u0302\u0303\u0304|n\u0303 N\u0303|\u0301alone|a \u0345 b|α\u0345 x\u0345y|!\u0345!
Z\u0351\u0352a\u0310\u0311l\u0315g\u0316o\u0317|\u1100\u1161\u11a8|\u0958 क\u093c
"""
EMOJI = """
😀|👍🏽|👍🏻👍🏿|👩‍👩‍👧‍👦|🏳️‍🌈|❤️|❤|#️⃣|1️⃣2️⃣|🇩🇪🇯🇵|🧑🏾‍🚀|a😀b|😀😀😀|😀1😀|☎️|©®™|🏴󠁧󠁢󠁥󠁮󠁧󠁿|♀♂|🫠🫡|:-) ;-( <3
"""
SIGNS = """
!|!!|!!!|!?!?|...|…|....|a.b.c|a,b;c:d|--|—|–|a-b|a--b|$5.99|100%|3.14159|1,000,000|1e-5|#hashtag|@name|a/b\\c|(a)[b]{c}
<b>bold</b>|</w>|a</w>b|http://a.b/c?d=e&f=g#h|me@example.com|c++|c#|«a»|“a”|„a“|‹a›|¡hola!|¿qué?|*a*_b_|a|A|1|_|~|^|`
a1b2|1a2b|10th|x²|+-×÷=|∀x∈ℝ|→←↑↓|░▒▓█|٪؟،|。、「」|，！？|·•‣|§¶†‡|€£¥₹₿|№ ℃ ℉|aaaa|aaaaaaaaaaa
"""
ENTITIES = """
&amp;|&amp;amp;|&amp;amp;amp;|&lt;b&gt;|&quot;q&quot;|&#39;s|it&#39;s|it&amp;#39;s|it&rsquo;s|&nbsp;a&nbsp;b&nbsp;
&#x17f;|&amp;#xfb06;|&#x1F600;|&#0;|&#xd800;|&#x110000;|&#128;&#153;|&#28;a|&amp;#11;a|&bogus;|&copy|&notin;|&|& &|&;
&Eacute;TE|&#73;&#775;|&eacute;<b>|x &lt y|<i>it&amp;#39;s|< &amp;amp;amp; >
"""
BROKEN = """
Ã©tÃ©|cafÃ©|â€œquotedâ€\x9d|donâ€™t|ðŸ˜€|Ã¢â‚¬â„¢|sÃ£o paulo|l’humanitÃ©|¯\\_(ã\x83\x84)_/¯|âœ” No problems
\ud83d\ude00|\ud800|a\udc00b|\ufffd|\ufeffbom|\x1b[31mred\x1b[0m
"""
SPACES = [
    "", " ", "   ", "\n", "\t", "\r\n", "a\tb", "a\nb\r\nc", "  a  b  ", "a\u00a0b", "a\u3000b", "a\u2003\u2009b",
    "a\u200bb", "a\u200db", "a\u00adb", "a\u2028b\u2029c", "a\x0bb\x0cc", "a\x00b", "a\x1cb\x1fc", "a\x7fb", "a\x85b",
    "\x80\x9f", "\u202ertl\u202c", "\ue000 private \U0010fffd", "\U000e0041", "\ufe0f", "\u180e a",
]  # fmt: skip
LITERALS = [
    START, END, START.upper(), f"a{START}", f"a {START} b", f"1{END}2", f"!{END}", f"{END}!", START + END, END * 3,
    f"!{START}{END}", f"'{END}", f"it's{END}", f"<{START}>", f"😀{END}😀", f"日{END}日", f"{END}'s", f"\u0345{END}",
    "<|startoftext|", "<| endoftext |>", "<|ſtartoftext|>", "&lt;|endoftext|&gt;", "<|STARTOFTEXT|>x",
    "<|&#x17f;tartoftext|>", "<|&#xfb06;artoftext|>",
]  # fmt: skip
LONG = [
    text * count
    for text, count in (("a", 500), ("ab", 300), ("é", 300), ("!", 400), ("1", 50), ("日", 200), ("x", 3000))
]
CONTRACTIONS = [
    *(text.replace("'", mark) + " x" for mark in "'’‘ʼ＇"
      for text in ("it's", "IT'S", "don't", "we're", "WE'VE", "i'm", "you'll", "he'D", "it'ſ", "'RE", "'le", "x'é")),
    "'", "''", "'s", "'so", "'tis", "rock'n'roll", "''s", "!'s", "1's", "'''ll", "o'clock", "s'",
]  # fmt: skip
TEXTS = [
    *regex.split(r"[|\n]", SCRIPTS + EMOJI + SIGNS + ENTITIES + BROKEN),
    *SPACES, *LITERALS, *LONG, *CONTRACTIONS,
]  # fmt: skip
PLAIN = ["a photo of a cat", "Hello, World!", "two small red circles above a large blue square", "the CAT's photo..."]

# Code points unknown to Python may be letters in only one of the two libraries.
characters = st.characters(exclude_categories=("Cn", "Cs"))
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126))
awkward = st.lists(st.one_of(characters, st.sampled_from(TEXTS), st.sampled_from(list("'<|> aAst1&;!")))).map("".join)


def test_there_are_many_texts():
    assert len(set(TEXTS)) >= 200


# --- CLIP's ids


def test_ids_of_awkward_texts(both):
    mine, reference = both
    assert [text for text in (*TEXTS, *PLAIN) if mine.pieces(text) != reference(text)] == []


@given(text=st.one_of(awkward, printable, st.text(characters)))
@settings(max_examples=300, deadline=None)
def test_ids_of_any_text(both, text):
    mine, reference = both
    assert mine.pieces(text) == reference(text)


@pytest.mark.slow
def test_words_with_every_character(small):
    """Each character precedes a letter and is between signs, so that its class (letter, numeral, sign) matters."""
    words = tokenizer.load(small).bpe.pre_tokenizer
    known = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    for start in range(0, len(known), 4000):
        text = " ".join(f"'{c}a!{c}!" for c in known[start : start + 4000]).lower()
        spans = [text[slice(*span)] for _, span in words.pre_tokenize_str(text)]
        assert spans == Reference.words.findall(text), hex(ord(known[start]))


def test_published_ids(published):
    clip = tokenizer.load(published)
    assert (clip.start, clip.end, clip.vocabulary) == (49406, 49407, 49408)
    assert clip.pieces("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert clip.pieces("  Hello\n WORLD ") == [3306, 1002]
    assert clip.pieces(f"hello {START}world{END}") == [3306, 49406, 1002, 49407]


def test_literals_are_ids_only_at_the_start_of_a_word(small):
    clip = tokenizer.load(small)
    assert clip.pieces(START) == [clip.start]
    assert clip.pieces(f"cat{END}{START}") == [*clip.pieces("cat"), clip.end, clip.start]
    assert clip.end not in clip.pieces(f"!{END}")


def swapped(merges, first, second):
    merges = list(merges)
    i, j = merges.index(first), merges.index(second)
    merges[i], merges[j] = merges[j], merges[i]
    return merges


def test_swapped_merges_change_the_ids(small, tmp_path):
    faulty = tokenizer.load(write_folder(tmp_path / "faulty", swapped(small_merges(), ("t", "h"), ("h", "e</w>"))))
    right = Reference(small_merges())
    assert faulty.pieces("the cat") != right("the cat") and faulty.pieces("cat") == right("cat")


def test_swapped_published_merges_change_the_ids(published, tmp_path):
    merges = published_merges(published)
    lines = ["#version", *(" ".join(pair) for pair in swapped(merges, ("t", "h"), ("h", "e</w>"))), ""]
    (tmp_path / FILE).write_bytes(gzip.compress("\n".join(lines).encode()))
    faulty, right = tokenizer.load(tmp_path / FILE), Reference(merges)
    assert [faulty.pieces(text) != right(text) for text in ("hello world", "the he")] == [False, True]


# --- arrays of tokens


def test_ids_have_start_end_and_padding(both):
    mine, _ = both
    texts = ["", "the cat", "cat"]
    tokens = mine.encode(texts, 8)
    assert tokens.shape == (3, 8) and tokens.dtype == np.int32
    for row, text in zip(tokens.tolist(), texts, strict=True):
        ids = [mine.start, *mine.pieces(text), mine.end]
        assert row == ids + [NO_TOKEN] * (8 - len(ids))
    assert tokens[0].tolist() == [mine.start, mine.end] + [NO_TOKEN] * 6
    assert mine.overlong(texts, 8) == [0, 0, 0]
    assert mine.encode([], 8).shape == (0, 8)
    np.testing.assert_array_equal(mine.encode(np.array(texts), 8), tokens)  # as batches hold captions


@pytest.mark.parametrize("length", [3, 4, 10, 11, 12, 13])
def test_truncated_texts_keep_the_end_token(both, length):
    mine, _ = both
    text = "a b c d e f g h i j"
    (tokens,) = mine.encode([text], length)
    num_kept = min(length - 2, 10)
    assert tokens[: num_kept + 2].tolist() == [mine.start, *mine.pieces(text)[:num_kept], mine.end]
    assert (tokens[num_kept + 2 :] == NO_TOKEN).all()
    assert mine.overlong([text, "a"], length) == [10 - num_kept, 0]


@pytest.mark.parametrize("length", [2, 0, -1])
def test_too_short_lengths_raise(small, length):
    clip = tokenizer.load(small)
    for function in (clip.encode, clip.overlong):
        with pytest.raises(UserError, match=f"text.length={length}: is too short; use at least 3"):
            function([], length)


# --- back to text


@given(text=awkward)
@settings(max_examples=100, deadline=None)
def test_clip_decodes_all_but_spaces(both, text):
    mine, reference = both
    words = [word for word in reference.words.findall(cleaned(text)) if word not in (START, END)]
    assert mine.decode(mine.pieces(text)).replace(" ", "") == "".join(words)


def test_clip_decodes_words(both):
    mine, _ = both
    assert mine.decode(mine.encode(["A photo of the  CAT"], 77)[0]) == "a photo of the cat"
    assert mine.decode(mine.pieces("it's été, 日本")) == "it 's été , 日本"
    assert mine.decode([]) == mine.decode([mine.start, mine.end, NO_TOKEN]) == ""
    half = sorted(alphabet().values()).index(alphabet()["é".encode()[0]])
    assert mine.decode([half, mine.end]) == "\ufffd"


# --- trained tokenizers

CAPTIONS = [f"a {size} {colour} {shape}" for size in ("small", "large") for colour in ("red", "blue")
            for shape in ("circle", "square", "Caf&eacute;")]  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    return tokenizer.train(CAPTIONS, 285)


@given(text=st.one_of(awkward, st.text()))
@settings(max_examples=150, deadline=None)
def test_a_trained_tokenizer_decodes_any_text(trained, text):
    pieces = trained.pieces(text)
    (ids,) = trained.encode([text], len(pieces) + 3)
    assert ids.tolist() == [trained.start, *pieces, trained.end, NO_TOKEN]
    assert trained.decode(ids) == trained.decode(pieces) == cleaned(text)


def test_a_trained_tokenizer_has_every_byte(trained):
    assert [trained.bpe.id_to_token(i) for i in range(256)] == sorted(alphabet().values())


def test_a_trained_tokenizer_has_no_literals(trained):
    """The names of the start and end tokens are ordinary text."""
    for text in LITERALS:
        assert not {trained.start, trained.end} & {*trained.pieces(text)}


def test_a_trained_tokenizer_merges_frequent_pairs(trained):
    assert trained.vocabulary == 285 and (trained.start, trained.end) == (283, 284)
    tokens = trained.encode(CAPTIONS, 77)
    assert tokens.max() < 285 and (tokens != NO_TOKEN).sum(1).max() <= 10
    assert trained.pieces("small small") == 2 * trained.pieces("small")  # the first word is encoded as any other
    assert len(trained.pieces("a small red circle")) < len("a small red circle") / 2


def test_the_size_of_the_vocabulary():
    few = tokenizer.train(["a cat", "a cat"], 10_000)
    assert 258 < few.vocabulary < 270 and few.end == few.vocabulary - 1
    assert tokenizer.train(["once"], 300).vocabulary == 258
    bare = tokenizer.train(["a cat"] * 9, 258)
    assert bare.vocabulary == 258 and bare.decode(bare.pieces("A  cat")) == "a cat"
    with pytest.raises(UserError, match=r"text\.vocabulary=257: is too small; use at least 258"):
        tokenizer.train(CAPTIONS, 257)


@pytest.mark.slow
def test_training_is_deterministic_across_processes(tmp_path):
    """Many pairs are equally frequent; their order does not depend on hashes."""
    code = (
        "import sys; from diffjax.data import tokenizer, shapes\n"
        "captions = [shapes.caption(shapes.scene('train', i)) + f' {i * i}' for i in range(300)]\n"
        "tokenizer.train(captions, 400).save(sys.argv[1])"
    )
    paths = [tmp_path / f"{i}.json" for i in range(3)]
    for i, path in enumerate(paths):
        subprocess.run([sys.executable, "-c", code, path], check=True, env={**os.environ, "PYTHONHASHSEED": str(i)})
    assert len({path.read_bytes() for path in paths}) == 1 and tokenizer.load(paths[0]).vocabulary == 400


# --- files


# --- GLIDE's vocabulary, that of GPT-2: no start and end, no cleaning

GPT2_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def gpt2_ids(merges, text):
    """Returns the ids of a text in lower case, by the definition of byte-pair encoding."""
    ids = {word: i for i, word in enumerate([*sorted(alphabet().values()), *map("".join, merges)])}
    result = []
    for word in GPT2_WORDS.findall(text.lower()):
        parts = [alphabet()[byte] for byte in word.encode()]
        for first, second in merges:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (first, second):
                    parts[i : i + 2] = [first + second]
                i += 1
        result += [ids[part] for part in parts]
    return result


@pytest.fixture(scope="module", params=["plain", "compressed"])
def glide(request, tmp_path_factory):
    """Returns a folder with a vocabulary of GLIDE's kind, and its merges."""
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ġ", "Ġ")]
    words = [*sorted(alphabet().values()), *map("".join, merges), END]
    folder = tmp_path_factory.mktemp(f"glide_{request.param}")
    contents = {
        "encoder.json": json.dumps({word: i for i, word in enumerate(words)}),
        "vocab.bpe": "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n",
    }
    for name, content in contents.items():
        if request.param == "plain":
            (folder / name).write_text(content, encoding="utf-8")
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    return folder, merges


@given(st.text(max_size=30) | st.sampled_from([*SCRIPTS.split("|"), *EMOJI.split("|"), f"a {END}", "The  cat\n the"]))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_glides_ids_are_those_of_its_definition_without_start_and_end(glide, text):
    folder, merges = glide
    loaded = tokenizer.load(folder)
    assert loaded.start is None and loaded.end is None and loaded.vocabulary == 256 + len(merges) + 1
    expected = gpt2_ids(merges, text)
    row = [*expected[:8], *[NO_TOKEN] * (8 - len(expected))]
    assert loaded.encode([text], 8)[0].tolist() == row
    assert loaded.overlong([text], 8) == [max(0, len(expected) - 8)]
    assert loaded.decode(expected) == text.lower().strip(" ")


def test_a_saved_tokenizer_of_glide_loads_unchanged(glide, tmp_path):
    loaded = tokenizer.load(glide[0])
    loaded.save(tmp_path / "tokenizer.json")
    assert same(tokenizer.load(tmp_path / "tokenizer.json"), loaded)
    np.testing.assert_array_equal(loaded.encode(["a \ud800"], 8), loaded.encode(["a ?"], 8))


def test_merges_of_another_vocabulary_raise(glide, tmp_path):
    (tmp_path / "vocab.bpe").write_text("#version\nt h\n", encoding="utf-8")
    words = [*sorted(alphabet().values()), END]
    (tmp_path / "encoder.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    with pytest.raises(UserError, match=r"vocab.bpe: .* of another vocabulary"):
        tokenizer.load(tmp_path)


def same(a, b):
    texts = [*TEXTS, *PLAIN, *CAPTIONS]
    kinds = ((t.start, t.end, t.vocabulary, t.bpe.to_str()) for t in (a, b))
    return len({*kinds}) == 1 and np.array_equal(a.encode(texts, 77), b.encode(texts, 77))


def test_a_saved_tokenizer_loads_unchanged(both, trained, tmp_path):
    for loaded in (both[0], trained):
        loaded.save(tmp_path / "tokenizer.json")
        assert same(tokenizer.load(tmp_path / "tokenizer.json"), loaded)
        assert same(tokenizer.load(str(tmp_path)), loaded)  # the folder
        assert same(pickle.loads(pickle.dumps(loaded)), loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_folder_of_the_published_vocabulary_loads(published, tmp_path):
    folder = write_folder(tmp_path / "clip", published_merges(published))
    assert same(tokenizer.load(folder), tokenizer.load(published))


def test_tokenizer_json_of_other_programs(small, tmp_path):
    """Merges are strings, and the normalizer and the word pattern differ from OpenAI's."""
    loaded = tokenizer.load(small)
    content = json.loads(loaded.bpe.to_str())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content |= {"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Whitespace"}, "version": "0.9"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert same(tokenizer.load(tmp_path), loaded)


@pytest.fixture(scope="module")
def damaged(small, tmp_path_factory):
    """Folder of files and folders that are not valid tokenizers, and their names."""
    folder = tmp_path_factory.mktemp("damaged")
    model = json.loads(tokenizer.load(small).bpe.to_str())["model"]

    def changed(**fields):
        return json.dumps({"model": {**model, **fields}}).encode()

    whole = gzip.compress(("\n".join(["#version", *["a b"] * 50_000])).encode())
    vocab, merges = (small / "vocab.json").read_bytes(), (small / "merges.txt").read_bytes()
    a_gap = {word: i + (i > 600) for word, i in model["vocab"].items()}
    files = {
        "text.txt": b"a photo of a cat",
        "empty.json": b"",
        "half.json": b'{"model": {"vocab"',
        "list.json": b"[1, 2]",
        "config.json": b'{"model": "unet", "text": {}}',
        "image.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "words.json": json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}).encode(),
        "few.json": json.dumps({"model": {**model, "vocab": {"a": 0, START: 1, END: 2}}}).encode(),
        "gap.json": json.dumps({"model": {**model, "vocab": a_gap}}).encode(),
        "suffix.json": json.dumps({"model": {**model, "end_of_word_suffix": "@@"}}).encode(),
        "triple.json": json.dumps({"model": {**model, "merges": [["a", "b", "c"]]}}).encode(),
        "unknown merge.json": json.dumps({"model": {**model, "merges": [["t", "h"], ["q", "zz"]]}}).encode(),
        "whole.gz": whole,  # the same pair again and again
        "truncated.gz": whole[: len(whole) // 2],
        "flipped.gz": whole[:30] + bytes([whole[30] ^ 255]) + whole[31:],
        "header.gz": whole[:5],
        "deep.json": b"[" * 200_000,
        "deep model.json": b'{"model": ' * 200_000,
        "latin.json": json.dumps({"model": model}, ensure_ascii=False).encode("latin-1", "replace"),
        "nan.json": b'{"model": {"vocab": {"a": NaN}, "merges": []}}',
        "number.json": b"7",
        "null.json": b'{"model": null}',
        "vocab list.json": changed(vocab=[*model["vocab"]]),
        "ids.json": changed(vocab={word: [0] for word in model["vocab"]}),
        "words of ids.json": changed(vocab={word: str(i) for word, i in model["vocab"].items()}),
        "true.json": changed(vocab={word: i == 1 or i for word, i in model["vocab"].items()}),
        "merges.json": changed(merges=3),
        "merges of merges.json": changed(merges=[[["a"], ["b"]]]),
        "merges of numbers.json": changed(merges=[[1, 2]]),
        "suffixes.json": changed(end_of_word_suffix=["</w>"]),
        "surrogate.json": changed(merges=[["\ud800", "a"]]),
        "controls.json": changed(merges=[["\x1b[2J\n", "a"]]),
        "collisions.json": changed(vocab={f"{i}": i * (2**61 - 1) for i in range(200_000)}),  # of hashes
        "short.gz": gzip.compress(gzip.decompress(whole)[:1000]),
        "image.gz": gzip.compress(bytes(range(256)) * 9),
        "cut/vocab.json": vocab,
        "cut/merges.txt": b"\n".join(merges.split(b"\n")[:-5]),
        "lists/vocab.json": b"[]",
        "lists/merges.txt": merges,
        "other/vocab.json": json.dumps({word: i for i, word in enumerate(alphabet().values())}).encode(),
        "other/merges.txt": merges,
        "binary/vocab.json": vocab,
        "binary/merges.txt": b"\xff\xfe" + merges,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder, sorted({name.split("/")[0] for name in files})


def test_damaged_files_raise(damaged):
    folder, names = damaged
    for name in names:
        with pytest.raises(UserError) as refused:
            tokenizer.load(folder / name)
        message = str(refused.value)
        assert re.match(
            rf"{re.escape(str(folder / name))}\S*: is not a tokenizer, or is damaged \(.*\); use a tokenizer.json",
            message,
        ), name
        assert FILE in message and message.isprintable() and len(message) < 500


def test_the_damaged_file_of_a_folder_is_reported(damaged):
    folder, _ = damaged
    for name, file in (("cut", "merges.txt"), ("lists", "vocab.json"), ("binary", "merges.txt")):
        with pytest.raises(UserError, match=f"{folder / name / file}: is not a tokenizer"):
            tokenizer.load(folder / name)


def test_a_decompression_bomb_is_read_to_the_limit_only(tmp_path):
    with gzip.open(tmp_path / "bomb.gz", "wb", compresslevel=1) as file:
        for _ in range(128):
            file.write(bytes(2**20))
    assert (tmp_path / "bomb.gz").stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="unpacks to more than 16,777,216 bytes"):
            tokenizer.load(tmp_path / "bomb.gz")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["huge.json", "huge.txt"])
def test_huge_files_raise(tmp_path, name):
    with open(tmp_path / name, "wb") as file:
        file.truncate(2**36)  # 64 GiB, of which nothing is on the disk
    with pytest.raises(UserError, match=f"{name}: larger than 16,777,216 bytes"):
        tokenizer.load(tmp_path / name)


def test_a_byte_order_mark_and_line_ends_of_another_system_are_read(small, tmp_path):
    loaded = tokenizer.load(small)
    for name in ("vocab.json", "merges.txt"):
        content = (small / name).read_bytes()
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert same(tokenizer.load(tmp_path), loaded)
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + loaded.bpe.to_str().encode())
    assert same(tokenizer.load(tmp_path / "a.json"), loaded)


@pytest.fixture(scope="module")
def bare():
    return tokenizer.train(["a cat"] * 9, 262).bpe.to_str().encode()


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_raise_or_give_a_tokenizer(bare, tmp_path_factory, data):
    content, path = bytearray(bare), tmp_path_factory.getbasetemp() / "changed.json"
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'{}[]",:0'))
    path.write_bytes(content)
    try:
        found = tokenizer.load(path)
    except UserError as error:
        assert str(error).isprintable() and str(path) in str(error)
    else:
        assert found.encode(["a cat"], 8).shape == (1, 8)


def test_missing_files_are_reported(tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "vocab.json").write_text(json.dumps(Reference([]).ids))
    (tmp_path / "nothing").mkdir()
    for name, missing in (("a.json", "a.json"), ("nothing", "nothing/vocab.json"), ("half", "half/merges.txt")):
        with pytest.raises(UserError, match=f"{tmp_path / missing}: does not exist; use a tokenizer.json"):
            tokenizer.load(tmp_path / name)


# --- with other threads and processes


def test_threads_share_a_tokenizer(both):
    mine, reference = both
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda _: [mine.pieces(text) for text in TEXTS], range(16))]
    assert all(ids == [reference(text) for text in TEXTS] for ids in found)


@pytest.mark.slow
def test_a_fork_prints_no_warning(small):
    code = (
        "import os, sys; from diffjax.data import tokenizer\n"
        "clip = tokenizer.load(sys.argv[1]); clip.encode(['a cat'] * 1000, 8)\n"
        "child = os.fork()\n"
        "clip.encode(['a cat'] * 1000, 8)\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", code, small], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0 and "arallelism" not in done.stderr, done.stderr


def test_fast_enough_for_batches(both):
    """More than 10,000 captions a second on one core."""
    mine, _ = both
    captions = [f"two small red circles above a large blue square, number {i}" for i in range(1000)]
    mine.encode(captions, 77)
    spent = []
    for _ in range(5):
        start = time.process_time()
        mine.encode(captions, 77)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.1
