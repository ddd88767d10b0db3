"""DALL-E on scenes of shapes: caption to image tokens, with its autoencoder and a CLIP for reranking.

    python launch.py train --config=configs/dalle_shapes.py --workdir=runs/dalle_shapes
    python launch.py sample --workdir=runs/dalle_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --best_of=64 --out=samples.png

Trains the autoencoder into runs/dalle_shapes/codec, CLIP into runs/dalle_shapes/clip, and then the transformer.

Time: 70 min on two cores of an AMD EPYC: CLIP 22; autoencoder 10 and transformer 37.
Score: of 500 samples for captions that are not in the training set 69 +- 2 % show the whole caption, at most 92 % the
relation (`launch.py evaluate --metrics=caption_accuracy --num=500`); without guidance 49 %. With CLIP reranking:
docs/results.
Setting: Ramesh et al. 2021: 64 layers of 62 heads of 64, 32x32 tokens of 8192, captions of 256 of 16,384 tokens, batch
1024, 430,000 steps; row, column, row, row attention in turn and convolutional attention last; here smaller.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.new("prior", "text", "codec", "clip", "transformer_prior", "masks", "token_sampler", data="shapes")
    common.add(config, "loss.text_weight", "rerank")
    common.add_parts(config, codec="vqvae.py:shapes", clip="clip_shapes.py")  # DALL-E's autoencoder is a dVAE
    config.clip = ""  # the transformer is conditioned on caption tokens, not on CLIP embeddings
    config.model.update(architecture="transformer", width=128, layers=6, heads=4, condition="text")
    config.model.condition_dropout = 0.1
    config.model.update(masks=("row", "column", "row", "row"), last_mask="convolution", mask_kernel=5)
    config.train.update(steps=2800, batch_size=64, learning_rate=1e-3, warmup_steps=300)
    config.train.update(weight_decay=0.045, beta2=0.96, ema_decay=0.999)
    config.train.update(sample_every=700, num_preview_samples=64)
    config.sampler.guidance = 2.0
    return config
