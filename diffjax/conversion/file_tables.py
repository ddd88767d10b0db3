"""Tables of single networks by `published.naming`, for the paths of all variables of a model.

One table imports a file and writes the same file.
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from diffjax.conversion import openai
from diffjax.errors import UserError
from diffjax.published.lazy import LazyTensor
from diffjax.published.table import Block, Table
from diffjax.published.tables import dalle, dit, edm, taesd
from diffjax.published.tensors import open_parts, open_tensors

PARTS = {  # networks in several files of a folder, by naming and part; the first file that exists is read
    "dalle": {"encoder": ("encoder.pkl",), "decoder": ("decoder.pkl",)},
    "glide_clip": {"image": ("clip_image_enc.pt",), "text": ("clip_text_enc.pt",)},
    "taesd": {
        "encoder": ("taesd_encoder.safetensors", "taesd_encoder.pth"),
        "decoder": ("taesd_decoder.safetensors", "taesd_decoder.pth"),
    },
}
_CODE_FACTOR = 8  # of the autoencoder whose latents DiT models


def part_files(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the files of a network in two files of a folder; empty for a network in one file."""
    parts = PARTS.get(config.get("published", {}).get("naming", ""), {})
    return tuple(name for candidates in parts.values() for name in candidates)


def open_source(path: Path, naming: str) -> dict[str, LazyTensor]:
    """Returns the tensors of a source: a file, or for networks in two files, their folder.

    Raises:
      UserError: the source is a file instead of a folder or the reverse, a file is missing, or it cannot be read.
    """
    if naming not in PARTS:
        if path.is_dir():
            raise UserError(f"--source={path}: is a folder; pass the file that the header of --config names")
        return open_tensors(path)
    if not path.is_dir():
        both = " and ".join(candidates[0] for candidates in PARTS[naming].values())
        raise UserError(f"--source={path}: is a file; pass the folder that has both {both}")
    files = {}
    for part, candidates in PARTS[naming].items():
        existing = [path / name for name in candidates if (path / name).exists()]
        if not existing:
            raise UserError(f"--source={path}: has no file {' or '.join(candidates)}; download it")
        files[part] = existing[0]
    return open_parts(files)


def _dit(config: ConfigDict) -> Table:
    model = config.model
    grid = config.data.image_size // _CODE_FACTOR // model.patch
    return {"params/model": Block("", dit.meta(patch=model.patch, grid=grid, width=model.width))}


def _dalle(config: ConfigDict) -> Table:
    return dalle.openai(groups=config.model.groups)


def _taesd(config: ConfigDict) -> Table:
    return taesd.original(factor=config.model.factor, blocks=config.model.blocks)


def _edm(config: ConfigDict) -> Table:
    network = edm.dhariwal_unet(side=config.data.image_size, levels=len(config.model.multipliers))
    return {"params/model": Block("model", network)}


TABLES: dict[str, Callable[[ConfigDict], Table]] = {
    "dalle": _dalle,
    "dit": _dit,
    "edm": _edm,
    "openai": openai.table,
    "taesd": _taesd,
}
