"""DALL-E 2 (unCLIP) on scenes of shapes: caption to CLIP image embedding to 16x16 image to 32x32 image.

    python launch.py train --config=configs/unclip_shapes.py --workdir=runs/unclip_shapes
    python launch.py sample --workdir=runs/unclip_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --prior=diffusion --steps=prior:64,decoder:50,upsampler:15 --out=samples.png

Trains every part into a folder of the workdir: CLIP, the principal components of its embeddings, both priors, the
decoder, the upsampler.

Time: 72 min on two cores of an AMD EPYC: CLIP 22, decoder 30, priors 4 and 8, upsampler 8.
Score: captions shown 19.8 +- 1.8 % with the diffusion prior (`launch.py evaluate --metrics=caption_accuracy
--num=500`), relations at most 67 %; docs/results has the loss of each stage.
Setting: Ramesh et al. 2022: see the configs of the parts.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.new("unclip", "clip", "pca", "prior", "ar_prior", "decoder", data="shapes", train=False)
    common.add(config, "upsampler", "upsampler_2", "sampler.prior", "sampler.candidates")
    common.add_parts(config, clip="clip_shapes.py", pca="pca.py", upsampler="upsampler.py")
    common.add_parts(config, **{name: f"unclip_{name}.py" for name in ("prior", "ar_prior", "decoder")})
    common.add_stages(config, prior={"steps": 64}, decoder={"steps": 50, "guidance": 2.0}, upsampler={"steps": 15})
    return config
