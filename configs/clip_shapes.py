"""CLIP on scenes of shapes: which caption belongs to which picture.

    python launch.py train --config=configs/clip_shapes.py --workdir=runs/clip_shapes

Time: 22 min on two cores of an AMD EPYC.
Score: among 1,000 test pictures of 428 captions, none of which training says, recall@1 is 95.7 % from picture to
caption and 96.5 % back; chance is 1.7 % (`launch.py evaluate --metrics=retrieval --num=1000`).
Setting: Radford et al. 2021: ViT or ResNet, batch 32,768, AdamW with weight decay 0.2, 32 epochs of 400M
pairs; here smaller.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of the data and all noise
    config.system = "clip"  # the module of diffjax/models
    config.dtype = "float32"  # of the computation, "float32" | "bfloat16"; weights and losses are float32

    config.data = ConfigDict()
    config.data.name = "shapes"  # shapes | emoji: what has captions
    config.data.dir = ""  # where prepared data sets lie; shapes need none
    config.data.split = "train"  # or a part of a prepared set, such as train[:1000]
    config.data.image_size = 32  # height and width; other sizes are resized
    config.data.background = "white"  # of emoji, "white" | "transparent"
    config.data.flip = False  # mirror half of the images: left would be right
    config.data.corrupt = "raise"  # what an example that cannot be read does: "raise" | "skip"

    config.text = ConfigDict()
    config.text.tokenizer = ""  # file of a vocabulary, such as CLIP's; "": one is trained on the captions
    config.text.vocabulary = 512  # tokens it may have: two, 256 bytes, and what is merged of them
    config.text.length = 16  # tokens of every text, with start and end; longer ones are cut

    config.model = ConfigDict()
    config.model.dimensions = 128  # of the embeddings

    config.image_encoder = ConfigDict()
    config.image_encoder.architecture = "vit"  # "vit" | "resnet": diffjax/nn/clip.py
    config.image_encoder.patch = 8  # side of a patch
    config.image_encoder.width = 128  # of the features
    config.image_encoder.layers = 4  # of attention and perceptron
    config.image_encoder.heads = 4  # of the attention

    config.text_encoder = ConfigDict()
    config.text_encoder.width = 128  # as for pictures
    config.text_encoder.layers = 3  # as for pictures
    config.text_encoder.heads = 4  # as for pictures

    config.train = ConfigDict()
    config.train.steps = 2000  # updates of the weights
    config.train.batch_size = 512  # over all devices; in a smaller one few pictures differ in a shape alone
    config.train.accumulate = 1  # parts the batch is worked through in, to save memory
    config.train.learning_rate = 1e-3  # of Adam, once warm
    config.train.schedule = "cosine"  # after the warm-up, "constant" | "cosine" (to zero at the last step)
    config.train.warmup_steps = 200  # linear from zero
    config.train.clip_norm = 1.0  # of the whole gradient; 0: not clipped
    config.train.weight_decay = 0.1  # decoupled, as AdamW
    config.train.beta1 = 0.9  # of Adam: its mean of gradients
    config.train.beta2 = 0.98  # of Adam: its mean of squares
    config.train.ema_decay = 0.999  # of the averaged weights that are kept for use
    config.train.skip_limit = 10  # steps in a row that are skipped as their gradient is not finite; more stop the run
    config.train.log_every = 10  # steps between lines of metrics.jsonl, 0: only the last
    config.train.sample_every = 0  # steps between sheets, 0: only at the end
    config.train.sample_count = 0  # images in a sheet, 0: no sheets
    config.train.checkpoint_every = 500  # steps between checkpoints, 0: only at the end
    config.train.keep_last = 2  # checkpoints kept, 0: all
    config.train.keep_every = 0  # and every checkpoint divisible by this; 0: no others

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" (global arrays) | "pmap" (one SPMD program per device)
    config.parallel.count = 0  # devices of all processes together, 0: every one
    config.parallel.fsdp = 1  # devices that share one copy of the weights; only with "jit"

    return config
