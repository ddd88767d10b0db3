"""Masked diffusion of the tokens of a VQ-VAE, and a causal transformer of the same size (`:causal`, `:causal_dvae`).

    python launch.py train --config=configs/masked_digits.py --workdir=runs/masked_digits
    python launch.py sweep --workdir=runs/masked_digits --sampler=confidence,ancestral_unmasking --steps=1,2,4,8,16
    python launch.py train --config=configs/masked_digits.py:causal --workdir=runs/causal_digits

Trains the autoencoder into runs/masked_digits/codec.

Time: not measured.
Score: after 1000 of the 1500 steps the bound on held-out digits is 3.8 bits per token; uniform is 6
(`eval/bits_per_code` of metrics.jsonl).
Setting: Chang et al. 2022 (MaskGIT): 24 layers of 768, 16x16 tokens of 1,024 values of ImageNet 256x256; here smaller.
"""

from ml_collections import ConfigDict

from configs import common, prior_transformer

VARIANTS = {"masked": "vqvae.py", "causal": "vqvae.py", "causal_dvae": "dvae.py"}  # config of the autoencoder


def get_config(variant: str = "masked") -> ConfigDict:
    codec = common.choose(variant, VARIANTS)
    if variant != "masked":
        config = prior_transformer.get_config()
        config.codec = "@codec"
    else:
        config = common.new("masked_prior", "codec", "masked_transformer", "masking", "masked_sampler")
        config.model.update(width=64, layers=3, heads=4, dropout=0.1, condition="label")
        config.sampler.update(name="confidence", steps=8)
        config.train.update(batch_size=128, learning_rate=1e-3)
    common.add_parts(config, codec=codec)
    config.model.condition_dropout = 0.1
    config.train.steps = 1500
    return config
