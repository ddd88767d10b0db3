"""Tables of single networks by `published.naming`, for the paths of all variables of a model.

One table imports a file and writes the same file.
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from diffjax.conversion import dit_config, openai
from diffjax.errors import UserError
from diffjax.published.lazy import LazyTensor
from diffjax.published.table import Block, Table
from diffjax.published.tables import dalle, dit, edm, taesd
from diffjax.published.tensors import open_parts, open_tensors
from diffjax.runs.dependencies import referenced_run
from diffjax.runs.workdir import Workdir

PARTS = {  # networks in several files of a folder, by naming and part; the first file that exists is read
    "dalle": {
        "encoder": ("encoder.pkl", "encoder.safetensors"),
        "decoder": ("decoder.pkl", "decoder.safetensors"),
    },
    "glide_clip": {"image": ("clip_image_enc.pt",), "text": ("clip_text_enc.pt",)},
    "taesd": {
        "encoder": ("taesd_encoder.safetensors", "taesd_encoder.pth"),
        "decoder": ("taesd_decoder.safetensors", "taesd_decoder.pth"),
    },
}


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


def _codec_factor(config: ConfigDict) -> int:
    """Returns by what the autoencoder of latent diffusion divides the sides of an image.

    Raises:
      UserError: it is not an autoencoder of continuous latents at one scale.
    """
    value = config.codec
    is_part = value.startswith("@") and value[1:] in config.get("parts", {})
    codec = config.parts[value[1:]] if is_part else Workdir(referenced_run(config, "codec", None)).read_config()
    model = codec.get("model", {})
    if model.get("architecture") == "ldm":
        return 2 ** (len(model.multipliers) - 1)
    if model.get("architecture") == "taesd":
        return model.factor
    architecture = model.get("architecture", "")
    raise UserError(
        f"codec={value}: must have model.architecture=ldm or taesd, not {architecture!r}; choose another run"
    )


def _dit(config: ConfigDict) -> Table:
    model = config.model
    dit_config.check_options(model, diffusers=False)
    grid = config.data.image_size // _codec_factor(config) // model.patch
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
