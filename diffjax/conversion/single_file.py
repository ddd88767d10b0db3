"""Single files of published weights, whose config is a file of configs/published.

Which names the tensors have is the config's `published.naming`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from diffjax.conversion import clip, compvis
from diffjax.conversion.components import ImportedRun, below
from diffjax.conversion.file_tables import TABLES, open_source
from diffjax.errors import UserError, unknown
from diffjax.published.lazy import LazyTensor
from diffjax.published.table import Block, Order, Table, by_head
from diffjax.published.tables import edm, unet

Tensors = Mapping[str, LazyTensor]


def read_file(path: Path, config: ConfigDict) -> ImportedRun:
    """Returns the run of a single file.

    Args:
      config: config of the network in the file; it is changed.

    Raises:
      UserError: the file cannot be read, or the config has no `published.naming` that is known.
    """
    naming = config.get("published", {}).get("naming", "")
    tensors = open_source(path, naming)
    tensors = below(tensors, "ema.") or below(tensors, "state_dict.") or tensors  # files of training have more
    if config.system == "clip":
        return clip.read_single_file(path, config, tensors)
    if naming not in NAMINGS:
        raise unknown("published.naming", naming, NAMINGS)
    return NAMINGS[naming](path, ConfigDict(config.to_dict()), tensors)


def read_openai(path: Path, config: ConfigDict, tensors: Tensors) -> ImportedRun:
    """Returns the run of a file of OpenAI's U-Nets: Improved DDPM, ADM, consistency models, GLIDE."""
    table: Table = {"params/model": Block("", openai_unet(config, side=config.data.image_size))}
    return ImportedRun(path, config, table, tensors)


def openai_unet(config: ConfigDict, *, side: int) -> Table:
    """Returns the table of a U-Net of `config.model` with OpenAI's names, for x_t of side x side."""
    model, levels = config.model, len(config.model.multipliers)
    return unet.openai(
        blocks=model.blocks,
        levels=levels,
        attention_levels=[i for i in range(levels) if side >> i in model.attention_resolutions],
        residual=model.get("resample", "conv") == "residual",
        transformer=bool(model.get("transformer_depth", 0)),
        qkv_order=_order(config, 3),
        kv_order=_order(config, 2),
    )


def read_network(path: Path, config: ConfigDict, tensors: Tensors) -> ImportedRun:
    """Returns the run of a network with a table of its own: DiT, DALL-E's discrete VAE, TAESD, EDM's DhariwalUNet."""
    naming = config.published.naming
    if naming == "edm":
        edm.check_dhariwal_unet(tensors, network=str(path))
    return ImportedRun(path, config, TABLES[naming](config), tensors)


def _order(config: ConfigDict, parts: int) -> Order | None:
    """Returns the order of fused queries, keys and values in the file."""
    if config.published.attention_order == "contiguous":
        return None
    if config.published.attention_order != "by_head":
        raise UserError(f"published.attention_order={config.published.attention_order}: must be contiguous or by_head")
    return by_head(parts, heads=config.model.get("heads", 1), head_channels=config.model.get("head_channels"))


NAMINGS: dict[str, Callable[[Path, ConfigDict, Tensors], ImportedRun]] = {
    "compvis": compvis.read,
    "openai": read_openai,
    **dict.fromkeys(TABLES, read_network),
}
