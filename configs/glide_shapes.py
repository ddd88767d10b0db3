"""GLIDE on scenes of shapes: caption, 16x16 picture, 32x32 picture.

    python launch.py train --config=configs/glide_shapes.py --workdir=runs/glide_shapes
    python launch.py sample --workdir=runs/glide_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --guidance=3 --steps=base:50,upsampler:15 --out=samples.png

Trains every part into a folder of the workdir: the first stage, which reads the caption, the upsampler, and a CLIP of
noised pictures to guide by in the place of classifier-free guidance (--guidance=1 --clip_scale=5).

Time: 50 min on two cores of an AMD EPYC: noised CLIP 5; first stage 37 and upsampler 8 beside other jobs.
Score: captions shown 70.4 +- 2.0 % (`launch.py evaluate --metrics=captions --num=500`), relations 90 %; docs/results
has others, and what training times do.
Setting: Nichol et al. 2021: the configs of the parts say it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of what is made at random beside the parts
    config.system = "glide"  # the module of diffjax/models
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
    config.parts.base = "glide_base.py"  # caption to picture
    config.parts.upsampler = "upsampler.py"  # to a larger picture
    config.parts.noised_clip = "noised_clip.py"  # to guide by
    config.base = "@base"  # each stage is a part, or the workdir of one that is trained
    config.upsampler = "@upsampler"  # "": none
    config.upsampler_2 = ""  # and one behind it
    config.noised_clip = "@noised_clip"  # "": none

    config.sampler = ConfigDict()  # what sample does unless told otherwise
    config.sampler.stages = ConfigDict()  # settings of each in the place of those of its own config
    config.sampler.stages.base = ConfigDict({"steps": 50, "guidance": 2.0})  # of the first picture
    config.sampler.stages.upsampler = ConfigDict({"steps": 15})  # of the larger one

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" (global arrays) | "pmap" (one SPMD program per device)
    config.parallel.count = 0  # devices of all processes together, 0: every one
    config.parallel.fsdp = 1  # devices that share one copy of the weights; only with "jit"

    return config
