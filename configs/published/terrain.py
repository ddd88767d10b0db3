"""A consistency model of terrain: heights on 128x128 points, of a difficulty from 0 to 1.

    pip download --no-deps adaptive-terrain-diffusion==0.4.2 && unzip adaptive_terrain_diffusion-0.4.2-*.whl
    pip install 'diffjax[published]'
    python launch.py import --source=terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx \
                            --config=configs/published/terrain.py --workdir=runs/terrain
    python launch.py sample --workdir=runs/terrain --number=0.7 --num=16 --out=terrain.png

The package (MIT licence, 39 MB) has 10.5 million parameters with the names of consistency_models, as ONNX. Difficulty d
of its 1 to 100 is the number (d - 1) / 99. A value v in [-1, 1] is the height 0.1 sinh((v + 1) / 2 asinh(221.7)).

Time: one sample takes 0.5 s on two cores of an AMD EPYC; not trained by us. In 220 steps of
2 images (emoji, grey; learning rate 2e-4; 20 minutes) the held-out denoising loss falls from 0.52 to 0.11.
Score: equal to the package's own output in ONNX Runtime within 1e-4 (tests/conversion/test_parity_terrain.py).
Setting: metadata of the file, which was distilled from a teacher of 20 steps for 25,000 steps, for sampling in one
step: more steps add grain. Training with this file is denoising, on a folder of grey images whose metadata.jsonl has
the numbers; batch size and learning rate are ours.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.new("ddpm", "conditions.number", "unet", "diffusion", "diffusion_sampler", "published")
    common.add(config, "data.number", "sampler.number", "model.resample", "model.norm_epsilon", "model.time_embedding")
    common.add(config, "model.downsample_padding", "model.initializer", "model.head_channels")
    config.data.update(name="folder", image_size=128, channels=1, num_classes=0, number="difficulty")
    config.conditions.number.update(low=0.0, high=1.0, width=128)
    config.model.update(channels=32, multipliers=(1, 1, 2, 3, 4), blocks=4, attention_resolutions=(32, 16, 8))
    config.model.update(head_channels=32, resample="residual", initializer="torch")
    config.model.update(norm_epsilon=1e-5, norm_min_channels=0, time_embedding="adm", downsample_padding="symmetric")
    config.diffusion.update(schedule="edm", continuous=True, parameterization="consistency(time_scale=1000)")
    config.diffusion.update(weighting="edm", time_sampling="log_normal(mean=-1.2,std=1.2)")
    config.train.update(steps=25_000, batch_size=16, learning_rate=1e-4, learning_rate_schedule="constant")
    config.train.update(ema_decay=0.999, sample_every=1000, num_preview_samples=16, checkpoint_every=1000)
    config.sampler.update(name="consistency", steps=1, grid="trailing", threshold="clip", number=0.5)
    config.published.update(naming="openai", attention_order="contiguous", attention_layers="conv2d")
    return config
