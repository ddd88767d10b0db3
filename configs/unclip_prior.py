"""unCLIP's diffusion prior: from a caption to the CLIP embedding of its picture.

    python launch.py train --config=configs/unclip_prior.py --workdir=runs/prior --config.clip=runs/clip

Of scenes of shapes, or `:emoji`; configs/unclip_shapes.py trains it with the rest.

Time: configs/unclip_shapes.py.
Score: configs/unclip_shapes.py.
Setting: Ramesh et al. 2022: 24 layers of 2048, cosine, x_0 predicted, embeddings scaled by 17.2, batch 4096, 600,000
steps, weight decay 0.06, 64 steps, the better of two; here smaller.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent
DATA = ("shapes", "emoji")


def get_config(data: str = "shapes") -> ConfigDict:
    config = load_file(f"{HERE}/glide_base.py:{data}")
    with config.unlocked():
        del config.text  # as the CLIP reads it
        config.clip = "@clip"  # whose embeddings: a part beside this one, or a workdir
        config.conditions = ConfigDict()
        config.conditions.clip_text = ConfigDict()
        config.conditions.clip_text.states = True  # of every token
        config.conditions.clip_text.embedding = True  # of the whole caption
        config.conditions.clip_text.dropout = 0.1  # share of captions withheld, for classifier-free guidance
        config.model = ConfigDict()  # fields of diffjax.nn.prior_transformer.PriorTransformer
        config.model.width = 128  # of the features
        config.model.layers = 4  # of attention and perceptron
        config.model.heads = 4  # of the attention
        del config.diffusion.downsample, config.diffusion.crop
        config.diffusion.embedding_scale = 11.3  # of embeddings of unit length: sqrt(128) gives values of unit variance
    config.system = "unclip_prior"  # the module of diffjax/models
    config.diffusion.times = "uniform"  # how training draws them: uniform | log_normal | logit_normal | importance
    config.diffusion.parameterization = "x0"  # what the network predicts
    config.train.steps = 4000  # updates of the weights
    config.train.weight_decay = 0.06  # decoupled, as AdamW
    config.train.sample_every = 0  # it draws no pictures
    config.train.sample_count = 0  # it draws no pictures
    config.sampler.steps = 64  # 1 to T
    config.sampler.guidance = 1.0  # scale s = 1 + w of classifier-free guidance; 1: none
    config.sampler.threshold = "none"  # embeddings have no range
    return config
