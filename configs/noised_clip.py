"""CLIP of noised scenes of shapes, to guide a diffusion model by: configs/clip_shapes.py, but for what is below.

    python launch.py train --config=configs/noised_clip.py --workdir=runs/noised_clip

Time: 5 min on two cores of an AMD EPYC.
Score: among 1,000 test pictures of 428 captions, none of which training says, recall@1 without noise is 58.0 % from
picture to caption and 70.7 % back; chance is 1.7 % (`launch.py evaluate --metrics=retrieval --num=1000`). With noise it
is 50 and 60 % at t = 250, 24 and 43 % half way (t = 500), chance at the end.
Setting: Nichol et al. 2021, sec. 3.4: ViT-L of 64x64 images, patches of 4, with the schedule of the model that is
guided; here smaller.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent
DATA = ("shapes", "emoji")


def get_config(data: str = "shapes") -> ConfigDict:
    config = load_file(f"{HERE}/clip_{data}.py").unlock()
    config.diffusion = ConfigDict()  # what noises the images: as in the diffusion model that is to be guided
    config.diffusion.schedule = "cosine"  # see docs/diffusion.md
    config.diffusion.zero_terminal_snr = False  # shift the schedule so that no signal is left at its end
    config.diffusion.timesteps = 1000  # T
    config.diffusion.continuous = False  # train on every real time instead of T levels
    config.diffusion.rescale_timesteps = False  # give the network (t - 1) * 1000 / T instead of t - 1
    config.diffusion.times = "uniform"  # how training draws them: uniform | log_normal | logit_normal | importance
    config.diffusion.downsample = 2  # what sides are divided by before it: 16x16, as the model draws them
    config.image_encoder.patch = 4  # side of a patch
    config.train.steps = 1500  # updates of the weights
    config.train.batch_size = 128  # over all devices
    config.train.learning_rate = 5e-4  # of Adam, once warm
    return config.lock()
