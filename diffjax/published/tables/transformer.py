"""Table of `nn.transformer.Transformer` with the names of OpenAI's text transformers, which GLIDE and Karlo share."""

from diffjax.published.table import Block, Module, Table, by_head


def openai(*, heads: int) -> Table:
    """Returns the table of a submodule `transformer`.

    Args:
      heads: attention heads.
    """
    block: Table = {
        "norm_attention": "ln_1",
        "qkv": Module(("attn.c_qkv",), order=by_head(3, heads=heads)),
        "out": "attn.c_proj",
        "norm_mlp": "ln_2",
        "mlp_in": "mlp.c_fc",
        "mlp_out": "mlp.c_proj",
    }
    return {
        r"transformer/block_(\d+)": Block("transformer.resblocks.{0}", block),
        "transformer/norm_out": "final_ln",
    }
