"""DALL-E 2 (unCLIP) on scenes of shapes: caption, CLIP embedding, 16x16 picture, 32x32 picture.

    python launch.py train --config=configs/unclip_shapes.py --workdir=runs/unclip_shapes
    python launch.py sample --workdir=runs/unclip_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --prior=diffusion --steps=prior:64,decoder:50,upsampler:15 --out=samples.png

Trains every part into a folder of the workdir: CLIP, the principal components of its embeddings, both priors, the
decoder, the upsampler.

Time: 72 min on two cores of an AMD EPYC: CLIP 22, decoder 30, priors 4 and 8, upsampler 8 beside other jobs.
Score: captions shown 19.8 +- 1.8 % with the diffusion prior (`launch.py evaluate --metrics=captions --num=500`),
relations 67 %; docs/results says what is lost where.
Setting: Ramesh et al. 2022: the configs of the parts say it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of what is made at random beside the parts
    config.system = "unclip"  # the module of diffjax/models
    config.dtype = "float32"  # of the computation; the parts have their own

    config.data = ConfigDict()  # what samples are measured against
    config.data.name = "shapes"  # shapes | emoji: what has captions
    config.data.dir = ""  # where prepared data sets lie; shapes need none
    config.data.split = "train"  # or a part of a prepared set, such as train[:1000]
    config.data.image_size = 32  # height and width; other sizes are resized
    config.data.background = "white"  # of emoji, "white" | "transparent"
    config.data.flip = False  # mirror half of the images: left would be right
    config.data.corrupt = "raise"  # what an example that cannot be read does: "raise" | "skip"

    config.parts = ConfigDict()  # trained first, into folders of the workdir: files of configs beside this one
    config.parts.clip = "clip_shapes.py"  # that embeds pictures and captions
    config.parts.pca = "pca.py"  # principal components of its embeddings
    config.parts.prior = "unclip_prior.py"  # caption to embedding, by diffusion
    config.parts.ar_prior = "unclip_ar_prior.py"  # the same, code by code
    config.parts.decoder = "unclip_decoder.py"  # embedding to picture
    config.parts.upsampler = "upsampler.py"  # to a larger picture
    config.clip = "@clip"  # each stage is a part, or the workdir of one that is trained
    config.pca = "@pca"  # for the looks at embeddings by their components; "": none
    config.prior = "@prior"  # "": none
    config.ar_prior = "@ar_prior"  # "": none
    config.decoder = "@decoder"  # the one that is always there
    config.upsampler = "@upsampler"  # "": none
    config.upsampler_2 = ""  # and one behind it

    config.sampler = ConfigDict()  # what sample does unless told otherwise
    config.sampler.prior = "diffusion"  # "diffusion" | "ar" | "none", the caption's own embedding
    config.sampler.candidates = 2  # embeddings that the prior draws, of which the nearest to the caption's is taken
    config.sampler.stages = ConfigDict()  # settings of each in the place of those of its own config
    config.sampler.stages.prior = ConfigDict({"steps": 64})  # of the embedding
    config.sampler.stages.decoder = ConfigDict({"steps": 50, "guidance": 2.0})  # of the first picture
    config.sampler.stages.upsampler = ConfigDict({"steps": 15})  # of the larger one

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" (global arrays) | "pmap" (one SPMD program per device)
    config.parallel.count = 0  # devices of all processes together, 0: every one
    config.parallel.fsdp = 1  # devices that share one copy of the weights; only with "jit"

    return config
