"""Tables of `nn.dit.DiT`: the names of Meta's files, and those of diffusers' DiTTransformer2DModel."""

import numpy as np

from diffjax.published.table import Block, Fixed, Module, Table, fused, patches


def meta(*, patch: int, grid: int, width: int) -> Table:
    """Returns the table of the files of DiT's code, such as DiT-XL-2-256x256.pt.

    Args:
      patch: side of a patch, model.patch.
      grid: patches per side, from which the file's position embeddings follow.
      width: model.width.
    """
    block: Table = {
        "modulation": "adaLN_modulation.1",
        "qkv": "attn.qkv",
        "out": "attn.proj",
        "mlp_in": "mlp.fc1",
        "mlp_out": "mlp.fc2",
    }
    return {
        "patch": Block("", patches("x_embedder.proj", patch)),
        "time_0": "t_embedder.mlp.0",
        "time_1": "t_embedder.mlp.2",
        "label": "y_embedder.embedding_table",
        r"block_(\d+)": Block("blocks.{0}", block),
        "modulation_out": "final_layer.adaLN_modulation.1",
        "out": "final_layer.linear",
        "pos_embed": Fixed("pos_embed", _position_embeddings(grid, width)),
    }


def diffusers(*, patch: int, layers: int, time_embedding: str = "ddpm") -> Table:
    """Returns the table of diffusers' DiTTransformer2DModel, whose blocks repeat the embedding of time and label.

    Args:
      patch: side of a patch, model.patch.
      layers: number of blocks, model.layers.
      time_embedding: model.time_embedding. diffusers computes the frequencies of "ddpm" (and cosines first), so
        model.time_embedding=ddpm has its outputs. "adm" has those of the code that trained the published weights.
    """
    first, *others = (f"transformer_blocks.{i}.norm1.emb" for i in range(layers))
    sines_first = time_embedding == "ddpm"

    def embedding(name: str, *, swapped: bool = False) -> Module:
        copies = tuple(f"{other}.{name}" for other in others)
        return Module((f"{first}.{name}",), copies=copies, input_order=_sines_first if swapped else None)

    block: Table = {
        "modulation": "norm1.linear",
        "qkv": fused("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        "out": "attn1.to_out.0",
        "mlp_in": "ff.net.0.proj",
        "mlp_out": "ff.net.2",
    }
    return {
        "patch": Block("", patches("pos_embed.proj", patch)),
        "time_0": embedding("timestep_embedder.linear_1", swapped=sines_first),
        "time_1": embedding("timestep_embedder.linear_2"),
        "label": embedding("class_embedder.embedding_table"),
        r"block_(\d+)": Block("transformer_blocks.{0}", block),
        "modulation_out": "proj_out_1",
        "out": "proj_out_2",
    }


def _sines_first(values: int) -> np.ndarray:
    """Returns the order of sines and cosines of a timestep embedding, in a file that has the cosines first."""
    return np.roll(np.arange(values), values // 2)


def _position_embeddings(grid: int, width: int) -> np.ndarray:
    """Returns the position embeddings of DiT's code [1, grid * grid, width], float32: those of `grid_embedding`."""
    frequencies = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    angles = np.arange(grid, dtype=np.float32)[:, None] * frequencies
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns, rows = np.tile(line, (grid, 1)), np.repeat(line, grid, axis=0)
    return np.concatenate([columns, rows], axis=1).astype(np.float32)[None]
