"""DALL-E on scenes of shapes: captions in, pictures out, code by code; with its autoencoder and a CLIP to rank by.

    python launch.py train --config=configs/dalle_shapes.py --workdir=runs/dalle_shapes
    python launch.py sample --workdir=runs/dalle_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --best_of=64 --out=samples.png

Trains the autoencoder into runs/dalle_shapes/codec, CLIP into runs/dalle_shapes/clip, and then the transformer.

Time: 70 min on two cores of an AMD EPYC: 22 of them CLIP's; the autoencoder's 10 and the transformer's 37
beside other jobs.
Score: of 500 pictures of captions that training never says 49 % show all of it, 91 % the right count, 94 % the colours,
70 % the shapes, 71 % the sizes, 88 % the relation (`launch.py evaluate --metrics=captions --num=500`); of the best by
CLIP: docs/results.
Setting: Ramesh et al. 2021: 64 layers of 62 heads of 64, 32x32 codes of 8192, captions of 256 of 16,384 tokens, batch
1024, 430,000 steps; row, column, row, row attention in turn and convolutional attention last; here smaller.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of the data and all noise
    config.system = "prior"  # the module of diffjax/models
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

    config.parts = ConfigDict()  # trained first, into folders of the workdir: files of configs beside this one
    config.parts.codec = "vqvae.py:shapes"  # of pictures into codes; DALL-E's is a dVAE
    config.parts.clip = "clip_shapes.py"  # that ranks the samples and measures them
    config.codec = "@codec"  # the autoencoder whose codes these are: a part, or the workdir of one that is trained
    config.clip = ""  # whose embeddings of captions it is told, where model.condition is "clip": "@clip", or a workdir

    config.model = ConfigDict()
    config.model.architecture = "transformer"  # "pixelcnn" (one level) | "transformer"
    config.model.condition = "text"  # "none" | "label" | "text" | "clip", what it is told of an image
    config.model.condition_dropout = 0.1  # share of captions withheld, for classifier-free guidance
    config.model.width = 128  # of the features
    config.model.layers = 6  # of attention and perceptron
    config.model.heads = 4  # of the attention
    config.model.masks = ("row", "column", "row", "row")  # of the layers in turn: nn/masks.py; (): all see all before
    config.model.last_mask = "convolution"  # of the last layer; "": as the others
    config.model.mask_kernel = 5  # of the convolution
    config.model.dropout = 0.0  # of what each branch adds

    config.loss = ConfigDict()
    config.loss.text_weight = 1 / 8  # of the captions' tokens; the codes have the rest

    config.train = ConfigDict()
    config.train.steps = 2800  # updates of the weights
    config.train.batch_size = 64  # over all devices
    config.train.accumulate = 1  # parts the batch is worked through in, to save memory
    config.train.learning_rate = 1e-3  # of Adam, once warm
    config.train.schedule = "cosine"  # after the warm-up, "constant" | "cosine" (to zero at the last step)
    config.train.warmup_steps = 300  # linear from zero
    config.train.clip_norm = 1.0  # of the whole gradient; 0: not clipped
    config.train.weight_decay = 0.045  # decoupled, as AdamW
    config.train.beta1 = 0.9  # of Adam: its mean of gradients
    config.train.beta2 = 0.96  # of Adam: its mean of squares
    config.train.ema_decay = 0.999  # of the averaged weights that are kept for use
    config.train.skip_limit = 10  # steps in a row that are skipped as their gradient is not finite; more stop the run
    config.train.log_every = 10  # steps between lines of metrics.jsonl, 0: only the last
    config.train.sample_every = 700  # steps between sheets, 0: only at the end
    config.train.sample_count = 64  # images in a sheet, 0: no sheets
    config.train.checkpoint_every = 500  # steps between checkpoints, 0: only at the end
    config.train.keep_last = 2  # checkpoints kept, 0: all
    config.train.keep_every = 0  # and every checkpoint divisible by this; 0: no others

    config.sampler = ConfigDict()  # what sample does unless told otherwise
    config.sampler.temperature = 1.0  # of the codes that are drawn
    config.sampler.top_k = 0  # only the k most likely codes; 0: all
    config.sampler.top_p = 1.0  # only the most likely ones that together have this probability; 1: all
    config.sampler.guidance = 1.0  # scale of classifier-free guidance on logits; 1: none

    config.rerank = ConfigDict()
    config.rerank.clip = "@clip"  # the one that ranks and measures: a part, or the workdir of one; "": none
    config.rerank.best_of = 1  # pictures that are drawn for each caption, of which CLIP picks the best

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" (global arrays) | "pmap" (one SPMD program per device)
    config.parallel.count = 0  # devices of all processes together, 0: every one
    config.parallel.fsdp = 1  # devices that share one copy of the weights; only with "jit"

    return config
