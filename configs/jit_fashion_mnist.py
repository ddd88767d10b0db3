"""JiT on Fashion-MNIST: a transformer over patches of 28x28 pixels that predicts clean images.

    python launch.py train --config=configs/jit_fashion_mnist.py --workdir=runs/jit --config.data.dir=DIR
    python launch.py sample --workdir=runs/jit --num=100

--config.model.patch is 2, 7 or 14. configs/ddpm_fashion_mnist.py has the command that prepares the data.

Time: not measured.
Score: not measured.
Setting: Li & He 2025: JiT-B/16 on ImageNet 256x256 has width 768, 12 layers, 12 heads, bottleneck 128 and 32
in-context class tokens from block 4 (model.class_tokens), and is trained for 600 epochs with batches of 1024.
"""

from ml_collections import ConfigDict

from configs import common

OPTIONS = ("norm", "positions", "qk_norm", "activation", "bottleneck")
FIELDS = ("architecture", "patch", "width", "layers", "heads", "time_embedding", *OPTIONS)


def get_config() -> ConfigDict:
    config = common.new("ddpm", "diffusion", "labels", "diffusion_sampler", data="fashion_mnist")
    common.add(config, *(f"model.{name}" for name in FIELDS))
    config.model.update(architecture="dit", patch=14, width=64, layers=3, heads=4, time_embedding="adm")
    config.model.update(norm="rms", positions="both", qk_norm=True, activation="swiglu", bottleneck=32)
    config.diffusion.update(schedule="rectified_flow", continuous=True, parameterization="x0")
    # The paper's times run from noise to image, with mean -0.8.
    config.diffusion.update(weighting="flow(min_sigma=0.05)", time_sampling="logit_normal(mean=0.8, std=0.8)")
    config.train.update(steps=2000, batch_size=64, ema_decay=0.998, sample_every=0)
    config.sampler.update(name="heun", steps=25, threshold="none")
    return config
