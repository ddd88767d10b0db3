"""Tables of `nn.prior_transformer.PriorTransformer`: the names of diffusers and of Karlo's code.

Both files also have the statistics of embeddings (clip_mean, clip_std), which are no parameters of the network.
"""

from diffjax.published.table import Block, Table, Tensor, fused
from diffjax.published.tables import transformer


def diffusers() -> Table:
    """Returns the table of diffusers' PriorTransformer."""
    block: Table = {
        "norm_attention": "norm1",
        "qkv": fused("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        "out": "attn1.to_out.0",
        "norm_mlp": "norm3",
        "mlp_in": "ff.net.0.proj",
        "mlp_out": "ff.net.2",
    }
    return {
        "context": "encoder_hidden_states_proj",
        "embedding": "embedding_proj",
        "time_0": "time_embedding.linear_1",
        "time_1": "time_embedding.linear_2",
        "image": "proj_in",
        "query": Tensor("prd_embedding", lambda tensor: tensor[0, 0], lambda value: value[None, None]),
        "place": Tensor("positional_embedding", lambda tensor: tensor[0], lambda value: value[None]),
        r"transformer/block_(\d+)": Block("transformer_blocks.{0}", block),
        "transformer/norm_out": "norm_out",
        "out": "proj_to_clip_embeddings",
    }


def karlo(*, heads: int) -> Table:
    """Returns the table of the prior in Karlo's checkpoint, below "model.".

    Args:
      heads: number of attention heads, model.heads.
    """
    return {
        "context": "text_enc_proj",
        "embedding": "text_emb_proj",
        "time_0": "time_embed.0",
        "time_1": "time_embed.2",
        "image": "clip_img_proj",
        "query": Tensor("prd_emb", lambda tensor: tensor[0, 0], lambda value: value[None, None]),
        "place": Tensor("positional_embedding", lambda tensor: tensor[0], lambda value: value[None]),
        **transformer.openai(heads=heads),
        "out": "out_proj",
    }
