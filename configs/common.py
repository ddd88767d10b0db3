"""Every config field, documented once; and functions of which config files are made.

    from configs import common

    def get_config() -> ConfigDict:
        config = common.new("ddpm", "unet", "model.heads", "diffusion", "labels", "diffusion_sampler")
        config.train.steps = 2000
        return config

A config lists its groups of fields (`GROUPS`), and changes the defaults that `FIELDS` gives them. It is locked: `add`
and `remove` change which fields it has. `launch.py train --config=configs/digits.py --print_config` prints every value
of a config with its documentation.

A config that builds on another imports it: `from configs import common, digits`; `config = digits.get_config()`.
`configs` has the modules in the folder of the config file, and then those of this repository, so a config file outside
this repository imports them in the same way.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from diffjax.errors import unknown

T = TypeVar("T")
INF = float("inf")

FIELDS: dict[str, tuple[Any, str]] = {  # name: (default, documentation); "a | b" lists choices
    # Run
    "seed": (0, "seed of initial weights, data order and training noise; of a pipeline: of sampling"),
    "system": (
        "ddpm",
        "model: ddpm, latent, classifier, vae, vqvae, dvae, prior, masked_prior, gan, clip, pca, ...",
    ),
    "dtype": ("float32", "dtype of the computation: float32 | bfloat16; weights and losses are float32"),
    # Trained models that the run uses. "@x" is the part parts.x, or another part of the same pipeline; other values are
    # workdirs of trained runs, and '' is no model.
    "codec": ("@codec", "autoencoder, or PCA of CLIP embeddings, whose latents or tokens are modelled"),
    "clip": ("@clip", "CLIP that encodes captions or images"),
    "base": ("@base", "first stage: caption to image at low resolution"),
    "upsampler": ("@upsampler", "second stage: to higher resolution; '': none"),
    "upsampler_2": ("", "third stage: to still higher resolution; '': none"),
    "teacher": ("", "run of the same data and conditions that training distils; '': training from data"),
    "last_step": ("", "another model of the same data, for the last step of sampling (Karlo's upsampler); '': none"),
    "noised_clip": ("@noised_clip", "CLIP of noised images, for CLIP guidance; '': none"),
    "pca": ("@pca", "principal components of CLIP image embeddings, for interpolation; '': none"),
    "prior": ("@prior", "diffusion prior: caption to CLIP image embedding; '': none"),
    "ar_prior": ("@ar_prior", "autoregressive prior: caption to CLIP image embedding; '': none"),
    "decoder": ("@decoder", "first stage: CLIP image embedding to image; required"),
    # Data
    "data.name": (
        "digits",
        "data set: digits | fashion_mnist | cifar10 | emoji | shapes | folder | npz:FILE | tar:PATTERN | tfds:NAME | "
        "hf:NAME | latents (of launch.py encode) | pairs (of launch.py pairs)",
    ),
    "data.dir": ("", "folder or URL of images, prepared data sets, latents or pairs; digits and shapes need none"),
    "data.split": ("train", "split, or a slice of one on disk, such as train[:1000] or train[90%:]"),
    "data.image_size": (8, "height and width, in pixels; images of another size are resized"),
    "data.channels": (0, "channels: 1 (grey) | 3 | 4 (with alpha); 0: as the data set has"),
    "data.fit": ("center_crop", "how images become square: center_crop | random_crop | pad | stretch"),
    "data.background": ("white", "colour under alpha and around padded images: white | black | #rrggbb | transparent"),
    "data.num_classes": (-1, "classes of the labels; 0: ignore labels; -1: as the data set has"),
    "data.class_names": ((), "names of the classes; (): as the data set has"),
    "data.number": ("", "column of metadata.jsonl, or array of npz:FILE, with a number per image; '': none"),
    "data.flip": (False, "mirror a random half of the images"),
    "data.on_corrupt": ("raise", "unreadable examples: raise | skip"),
    "data.cache_gib": (-1.0, "memory of decoded images, in GiB; -1: a quarter of the machine's; 0: no cache"),
    "data.workers": (0, "processes that read batches ahead; 0: threads of this process, one per core"),
    "data.augment.prob": (0.0, "probability of each transform of non-leaky augmentation; only system=ddpm; 0: off"),
    "data.augment.transforms": (
        ("x_flip", "y_flip", "scaling", "rotation", "anisotropy", "translation"),
        "its transforms; x_flip has probability 1/2",
    ),
    # Text
    "text.tokenizer": ("", "vocabulary file, such as CLIP's; '': train a tokenizer on the captions"),
    "text.vocabulary": (512, "tokens: start, end, 256 bytes and the merges of byte pair encoding"),
    "text.length": (16, "tokens per caption, start and end included; longer captions are cut"),
    # Model
    "model.architecture": (
        "unet",
        "network: unet | dit | mmdit | uvit | edm2 (diffusion), vqvae | ldm | dalle | taesd, pixelcnn | transformer",
    ),
    "model.channels": (32, "feature channels at the first level, that of full resolution"),
    "model.multipliers": ((1, 2), "channels of each level, in units of model.channels; each level halves the sides"),
    "model.blocks": (1, "residual blocks per level; the decoder of a UNet has one more"),
    "model.attention_resolutions": ((4,), "heights of the feature maps with attention, in pixels"),
    "model.middle_attention": (True, "attention at the lowest resolution of a UNet"),
    "model.heads": (1, "attention heads"),
    "model.head_channels": (32, "channels per attention head, instead of model.heads"),
    "model.transformer_depth": (1, "layers per spatial transformer (latent diffusion); 0 or absent: plain attention"),
    "model.dropout": (0.0, "dropout rate in residual blocks or branches"),
    "model.time_conditioning": ("scale_shift", "time embedding in residual blocks: add | scale_shift (adaptive norm)"),
    "model.resample": ("conv", "change of resolution: conv | pool | residual (BigGAN)"),
    "model.norm_groups": (32, "groups of group norm"),
    "model.norm_min_channels": (4, "minimum channels per group, so narrow levels have fewer; 0: exactly norm_groups"),
    "model.norm_epsilon": (1e-6, "epsilon of group norm: 1e-6 in DDPM, 1e-5 in ADM"),
    "model.residual_scale": (1.0, "factor on the sum of each residual block; ADM tests 1/sqrt(2)"),
    "model.time_embedding": ("ddpm", "sinusoidal embedding: ddpm | adm"),
    "model.downsample_padding": ("asymmetric", "padding of strided convolutions: asymmetric (DDPM) | symmetric (ADM)"),
    "model.initializer": ("ddpm", "initial weights: ddpm | torch"),
    "model.pool": ("attention", "pooling of a classifier's features: attention | mean"),
    "model.patch": (2, "patch side of a DiT, in pixels or latents"),
    "model.mlp_ratio": (4, "width of a transformer's MLP, in units of model.width"),
    "model.bandwidth": (1.0, "frequencies of the time's Fourier features (edm2); 0.001: times from 0 to 1000"),
    "model.label_balance": (0.5, "share of the label in the embedding (edm2); the other is that of the time"),
    "model.concat_balance": (0.5, "share of skip connections in concatenations (edm2)"),
    "model.residual_balance": (0.3, "share of the residual branch in sums (edm2)"),
    "model.attention_balance": (0.3, "share of attention in sums (edm2)"),
    "model.max_activation": (256.0, "activations of blocks are clipped to this (edm2)"),
    "model.activation": ("gelu", "activation of a transformer's MLP: gelu | quick_gelu | gelu_tanh (DiT) | swiglu"),
    "model.norm": ("layer", "norm of a DiT, MMDiT, U-ViT or of a prior's transformer: layer | rms"),
    "model.positions": ("sincos", "positions of a DiT's patches: sincos (added) | rope (queries and keys) | both"),
    "model.rope": (
        False,
        "rotary positions of a prior's transformer or a U-ViT, besides learned ones: False | True (by the index of a "
        "token; not in a U-ViT) | 'grid' (of images, by row and column)",
    ),
    "model.qk_norm": (False, "RMS norm of queries and keys, per head, of a DiT, U-ViT or prior's transformer"),
    "model.value_residual": (False, "mix values of attention with those of the first block, in the same networks"),
    "model.registers": (0, "learned tokens of a DiT or U-ViT besides those of the patches; 0: none"),
    "model.class_tokens": (0, "copies of the label's embedding that a DiT has as tokens, 32 in JiT; 0: none"),
    "model.class_tokens_from": (0, "first block that has them, from 0; 4 of 12 in JiT-B"),
    "model.bottleneck": (0, "channels of a DiT's patches before model.width; 0: no bottleneck"),
    "model.output_conv": (True, "3x3 convolution of the output (uvit)"),
    "model.remat": (
        "none",
        "values of blocks kept for gradients: none (all) | dots (outputs of linear layers and convolutions) | blocks",
    ),
    "model.scan_blocks": (
        False,
        "compile one block of a DiT, and loop over all: a network of many layers compiles sooner",
    ),
    "model.attention": ("auto", "attention implementation: auto | xla | cudnn"),
    # Networks of autoencoders
    "model.residual_channels": (16, "channels inside the residual blocks of the VQ-VAE network"),
    "model.factor": (2, "downsampling factor f of the networks vqvae and taesd"),
    "model.groups": (2, "levels of DALL-E's network; f = 2 ** (groups - 1)"),
    "model.input_channels": (128, "channels of the first 1x1 convolution of DALL-E's decoder"),
    "model.pixel_range": ((0.1, 0.9), "range that pixels are mapped to for DALL-E's encoder; absent: -1 to 1"),
    "model.latent_channels": (16, "channels of the latent"),
    "model.z_channels": (32, "channels between network and latent projection (ldm), or between levels (VQ-VAE-2)"),
    "model.coarser_factors": ((2,), "downsampling factor of each coarser level of tokens; (2, 2): three levels"),
    # Priors, CLIP, PCA and GANs
    "model.condition": ("label", "condition of a prior: none | label | text | clip | clip_caption"),
    "model.condition_dropout": (0.0, "share of conditions dropped, for classifier-free guidance"),
    "model.features": (48, "channels per layer of the PixelCNN"),
    "model.kernel": (3, "kernel side of the PixelCNN, in tokens"),
    "model.width": (128, "channels of the transformer"),
    "model.layers": (4, "transformer blocks, or gated layers of the PixelCNN"),
    "model.masks": ((), "attention masks of the layers in turn: full | row | column | convolution; (): full"),
    "model.last_mask": ("", "attention mask of the last layer; '': as model.masks"),
    "model.mask_kernel": (5, "kernel side of the mask convolution, in tokens"),
    "model.dimensions": (128, "dimensions of CLIP embeddings; 0: states of one encoder, without a linear map"),
    "model.resize_images": (False, "whether runs with images of another size than data.image_size can use this CLIP"),
    "model.components": (40, "principal components that have tokens, in order of variance"),
    "model.bins": (128, "tokens per principal component"),
    "model.latent": (64, "dimensions of the GAN's latent z"),
    "model.class_conditional": (True, "condition generator and discriminator on the class label"),
    # Diffusion. docs/diffusion.md lists every choice; options are in brackets, as in min_snr(gamma=3)
    "diffusion.schedule": (
        "cosine",
        "schedule: linear | scaled_linear | cosine | sigmoid | variance_exploding | edm | rectified_flow | trig_flow | "
        "learned",
    ),
    "diffusion.zero_terminal_snr": (False, "shift the schedule to zero signal at its end"),
    "diffusion.timesteps": (1000, "number of timesteps T"),
    "diffusion.continuous": (False, "train on real-valued times instead of T levels"),
    "diffusion.rescale_timesteps": (False, "network time (t - 1) * 1000 / T instead of t - 1"),
    "diffusion.time_sampling": ("uniform", "training times: uniform | log_normal | logit_normal | importance"),
    "diffusion.parameterization": ("v", "network output: eps | x0 | v | flow | edm | consistency | trig_flow | mu"),
    "diffusion.loss": (
        "mse",
        "training loss: mse | vlb | hybrid; of few steps: consistency | mean_flow | distribution_matching | ...",
    ),
    "diffusion.weighting": (
        "simple",
        "weights: simple | x0 | snr | flow | truncated_snr | min_snr | p2 | edm | learned",
    ),
    "diffusion.variance": ("fixed_small", "reverse variance: fixed_small | fixed_large | learned_range"),
    "diffusion.coupling": ("independent", "coupling of noise and data: independent | minibatch | reflow"),
    "diffusion.next_times": ("clean", "second times of flow maps: clean | second_sample | dyadic | grid | ..."),
    "diffusion.metric": ("l2", "distance of flow maps: l2 | pseudo_huber | adaptive"),
    "diffusion.teacher_guidance": (1.0, "scale of classifier-free guidance of `teacher`, distilled in; 1: none"),
    "diffusion.class_conditional": (True, "condition on the class label"),
    "diffusion.label_dropout": (0.1, "share of labels dropped, for classifier-free guidance"),
    "diffusion.downsample": (1, "factor by which images are averaged down before diffusion"),
    "diffusion.crop": (0, "side of random training crops, in pixels; 0: whole images"),
    "diffusion.embedding_scale": (1.0, "factor on unit-length embeddings; sqrt(dimensions): values of unit variance"),
    "diffusion.standardize_embeddings": (False, "per-dimension mean and deviation of a file instead of unit length"),
    # Masked diffusion of tokens
    "masking.schedule": ("linear", "masking schedule of training: linear | cosine | polynomial(power=2)"),
    "masking.loss": (
        "elbo",
        "training loss: elbo (bound of the likelihood) | cross_entropy (MaskGIT)",
    ),
    # Alignment of tokens with features of an image encoder (REPA); leave the section out for none
    "alignment.clip": (
        "@clip",
        "image encoder of the clean images, which only training needs: a CLIP, or a folder of a published DINOv2",
    ),
    "alignment.block": (2, "number of blocks of the DiT, MMDiT or U-ViT before the aligned tokens"),
    "alignment.weight": (0.5, "weight of the similarity in the loss"),
    "alignment.width": (256, "channels of the hidden layers of the projection"),
    "alignment.dimensions": (128, "channels of the encoder's patch tokens, or of a ResNet's last feature maps"),
    # Conditions
    "conditions.caption.width": (128, "channels of the caption transformer"),
    "conditions.caption.layers": (3, "blocks of the caption transformer"),
    "conditions.caption.heads": (4, "attention heads of the caption transformer"),
    "conditions.caption.dropout": (0.1, "share of captions dropped, for classifier-free guidance"),
    "conditions.caption.mlp_ratio": (4.0, "width of its MLP, in units of its width"),
    "conditions.caption.activation": ("gelu", "activation of its MLP: gelu | quick_gelu | gelu_tanh | swiglu"),
    "conditions.caption.norm": ("layer", "its norms: layer | rms"),
    "conditions.caption.rope": (False, "rotary positions, besides the learned position embeddings"),
    "conditions.caption.qk_norm": (False, "RMS norm of queries and keys, per head"),
    "conditions.caption.value_residual": (False, "mix values of attention with those of the first block"),
    "conditions.caption.remat": ("none", "values of blocks kept for gradients: none | dots | blocks, as model.remat"),
    "conditions.caption.attention": ("auto", "attention implementation: auto | xla | cudnn"),
    "conditions.clip_text.states": (True, "attend to CLIP's state of every caption token"),
    "conditions.clip_text.embedding": (False, "condition on CLIP's embedding of the caption"),
    "conditions.clip_text.dropout": (0.1, "share of captions dropped, for classifier-free guidance"),
    "conditions.clip_text.mask_padding": (False, "do not attend to the states of padding; unclip_prior never does"),
    "conditions.clip_text.unit_length": (True, "embedding of unit length, or as CLIP's last layer outputs it"),
    "conditions.clip_text.width": (0, "width to which a linear layer and a norm map the states; 0: as they are"),
    "conditions.clip_text.null": ("start", "null caption: start (its token alone) | empty (Stable Diffusion)"),
    "conditions.image_embedding.tokens": (4, "tokens of context that the CLIP image embedding is projected to"),
    "conditions.image_embedding.width": (128, "channels of these tokens, equal to those of the caption"),
    "conditions.image_embedding.unit_length": (True, "embedding of unit length, or as CLIP's last layer outputs it"),
    "conditions.image_embedding.dropout": (0.1, "share of embeddings dropped, for classifier-free guidance"),
    "conditions.guidance_scale.low": (1.0, "smallest scale of guidance in the network; sampler.guidance sets it"),
    "conditions.guidance_scale.high": (4.0, "largest scale"),
    "conditions.number.low": (0.0, "smallest number that the model is conditioned on"),
    "conditions.number.high": (1.0, "largest number"),
    "conditions.number.width": (128, "channels of the hidden layer of its embedding"),
    "conditions.label_token.width": (128, "channels of the class token"),
    "conditions.label_token.dropout": (0.1, "share of labels dropped, for classifier-free guidance"),
    "conditions.low_res_image.factor": (2, "factor by which the conditioning image is smaller"),
    "conditions.low_res_image.degradation": ("blur", "conditioning augmentation: none | blur | noise | bsr"),
    "conditions.low_res_image.level": (True, "give the network the level of the augmentation"),
    "conditions.low_res_image.interpolation": ("bilinear", "how it is enlarged: bilinear | bicubic"),
    "conditions.masked_image.full_mask_prob": (0.25, "share of training examples with everything masked"),
    "conditions.masked_image.ones": ("masked", "region where the mask is 1: masked | known (GLIDE)"),
    "conditions.masked_image.resize": ("any", "mask of a latent: any (of its pixels) | nearest (Stable Diffusion)"),
    # Codebook
    "codebook.kind": ("vq", "quantizer: vq | residual | product | fsq | lfq (signs of channels)"),
    "codebook.size": (64, "entries per codebook"),
    "codebook.depth": (1, "codebooks of kind residual and product"),
    "codebook.shared": (False, "one codebook for all depths of kind residual, as in RQ-VAE"),
    "codebook.levels": ((), "values per latent channel of kind fsq, such as (8, 5, 5, 5)"),
    "codebook.update_rule": (
        "ema",
        "updates of entries: ema (running means) | gradient | linear (of a linear map)",
    ),
    "codebook.estimator": ("straight_through", "gradient of quantised latents: straight_through | rotation"),
    "codebook.entropy_weight": (0.1, "weight of the entropy penalty of kind lfq"),
    "codebook.decay": (0.99, "decay of running means, per step"),
    "codebook.commitment": (0.25, "weight of the commitment loss |z - sg(e)|^2"),
    "codebook.cosine": (False, "nearest entry by cosine similarity instead of distance"),
    "codebook.dead_code_threshold": (0.03, "restart entries used less than this share of the mean; 0: never"),
    "codebook.init": ("data", "initial entries: normal | data | kmeans (latents of the first batch)"),
    "codebook.temperature": (1.0, "initial temperature of the Gumbel-softmax (dVAE)"),
    "codebook.temperature_end": (0.0625, "final temperature"),
    "codebook.temperature_steps": (500, "steps of the cosine decay between them"),
    # Loss
    "loss.likelihood": ("l1", "reconstruction loss: l1 | l2(variance=0.1) | logistic | logit_laplace"),
    "loss.perceptual_file": ("", "weights of EfficientNet-Lite0; '': no perceptual loss"),
    "loss.perceptual_weight": (1.0, "weight of the perceptual loss"),
    "loss.beta": (1.0, "weight of the KL of a VAE; 1: the ELBO"),
    "loss.free_bits": (0.0, "KL per latent channel below which it is not counted, in bits; 0: all is counted"),
    "loss.kl_weight_start": (0.0, "initial weight of the dVAE's KL to the uniform distribution"),
    "loss.kl_weight": (1.0, "final weight of the KL"),
    "loss.kl_steps": (500, "steps between the initial and the final weight"),
    "loss.text_weight": (1 / 8, "weight of the caption tokens' loss; image tokens have the rest"),
    # Adversarial: patch discriminator of an autoencoder; leave the section out for no discriminator
    "adversarial.weight": (0.5, "weight of the generator loss"),
    "adversarial.adaptive": (True, "multiply the weight by the ratio of gradients at the last layer (VQGAN, eq. 7)"),
    "adversarial.start_step": (200, "step at which the adversarial loss is enabled"),
    "adversarial.loss": ("hinge", "discriminator loss: hinge | logistic"),
    "adversarial.spectral_norm": (False, "divide each kernel by its largest singular value"),
    "adversarial.r1_gamma": (0.0, "weight gamma of the R1 penalty; 0: off"),
    "adversarial.channels": (32, "channels of the first layer"),
    "adversarial.layers": (1, "layers of stride 2, which set the patch size"),
    "adversarial.norm": ("group", "normalisation: group | none"),
    "adversarial.norm_groups": (32, "groups of group norm"),
    "adversarial.norm_min_channels": (4, "minimum channels per group; 0: exactly norm_groups"),
    # Discriminator and mapping network of GANs
    "discriminator.channels": (64, "feature channels at full resolution"),
    "discriminator.multipliers": ((1, 2), "channels of each level, in units of discriminator.channels"),
    "discriminator.residual_scale": (1.0, "factor on the sum of each residual block"),
    "discriminator.loss": ("hinge", "discriminator loss: hinge | logistic"),
    "discriminator.spectral_norm": (True, "divide each kernel by its largest singular value"),
    "discriminator.r1_gamma": (0.0, "weight gamma of the R1 penalty; 0: off"),
    "mapping.latent": (64, "dimensions of the latent z"),
    "mapping.width": (128, "channels of the mapping network's dense layers"),
    "mapping.layers": (3, "dense layers"),
    # Autoregressive decoder of an autoencoder
    "pixelcnn.features": (32, "channels per layer"),
    "pixelcnn.layers": (6, "gated layers"),
    "pixelcnn.kernel": (5, "kernel side, in pixels"),
    "pixelcnn.dropout": (0.0, "dropout rate in each layer"),
    # Encoders of CLIP
    "image_encoder.architecture": ("vit", "image encoder: vit | resnet"),
    "image_encoder.patch": (8, "patch side, in pixels"),
    "image_encoder.width": (128, "channels of the transformer"),
    "image_encoder.layers": (4, "transformer blocks"),
    "image_encoder.heads": (4, "attention heads"),
    "image_encoder.mlp_ratio": (4.0, "width of the MLP, in units of image_encoder.width"),
    "image_encoder.activation": (
        "quick_gelu",
        "activation of the MLP: quick_gelu (OpenAI) | gelu (open_clip) | swiglu",
    ),
    "image_encoder.norm": ("layer", "norms of the transformer: layer | rms"),
    "image_encoder.rope": (False, "rotary positions: False | True (by index) | 'grid' (of patches, by row and column)"),
    "image_encoder.registers": (0, "learned tokens besides those of the class and the patches; 0: none"),
    "image_encoder.qk_norm": (False, "RMS norm of queries and keys, per head"),
    "image_encoder.value_residual": (False, "mix values of attention with those of the first block"),
    "image_encoder.remat": ("none", "values of blocks kept for gradients: none | dots | blocks, as model.remat"),
    "image_encoder.pixel_mean": ((0.5,), "mean of pixels in [0, 1]: one value, or one per channel"),
    "image_encoder.pixel_std": ((0.5,), "their standard deviation; 0.5 and 0.5: normalised to [-1, 1]"),
    "text_encoder.width": (128, "channels of the transformer"),
    "text_encoder.layers": (3, "transformer blocks"),
    "text_encoder.heads": (4, "attention heads"),
    "text_encoder.mlp_ratio": (4.0, "width of the MLP, in units of text_encoder.width"),
    "text_encoder.activation": ("quick_gelu", "activation of the MLP: quick_gelu (OpenAI) | gelu (open_clip) | swiglu"),
    "text_encoder.norm": ("layer", "norms of the transformer: layer | rms"),
    "text_encoder.rope": (False, "rotary positions, besides the learned position embeddings"),
    "text_encoder.qk_norm": (False, "RMS norm of queries and keys, per head"),
    "text_encoder.value_residual": (False, "mix values of attention with those of the first block"),
    "text_encoder.remat": ("none", "values of blocks kept for gradients: none | dots | blocks, as model.remat"),
    "text_encoder.padding": (0, "token id at positions without a token; Stable Diffusion 1: the end token, 49407"),
    # Train
    "train.start": ("", "run, exported run or part, @base, whose weights are the initial weights; '': random"),
    "train.start_fresh": ((), "patterns of parameter paths that are initialised at random nevertheless: 'label'"),
    "train.freeze": ((), "patterns of parameter paths that are not trained: 'down_*'"),
    "train.steps": (1000, "optimiser updates"),
    "train.batch_size": (128, "examples per step, over all devices"),
    "train.accumulate": (1, "microbatches per step, to save memory"),
    "train.optimizer": (
        "adamw",
        "optimiser: adamw | lion | adan | adafactor | muon(rms=0.2) | prodigy | schedule_free | sgd(momentum=0.9)",
    ),
    "train.learning_rate": (1e-3, "peak learning rate, after warm-up; 1 for prodigy"),
    "train.learning_rate_schedule": (
        "cosine",
        "after warm-up: constant | cosine(end=0) | linear | inverse_sqrt(timescale=70000) | warmup_stable_decay",
    ),
    "train.mup_base_width": (
        0,
        "width at which train.learning_rate was chosen: muP transfers it to that of the UNet or DiT; 0: off",
    ),
    "train.warmup_steps": (100, "steps of linear warm-up from zero"),
    "train.clip_norm": (1.0, "maximum norm of the whole gradient; 0: no clipping"),
    "train.weight_decay": (0.0, "decoupled weight decay, times the learning rate; 0: none"),
    "train.beta1": (0.9, "decay of the first moment of Adam, and of lion, prodigy and schedule_free"),
    "train.beta2": (0.99, "decay of their second moment"),
    "train.ema_decay": (0.995, "decay of the averaged weights, per step; they are used after training"),
    "train.ema_lengths": (
        (),
        "relative lengths of two averages for `launch.py ema`, such as (0.05, 0.1); (): none",
    ),
    "train.ema_every": (0, "steps between these averages; 0: only at the end"),
    "train.max_consecutive_skips": (10, "consecutive steps that may be skipped for non-finite gradients"),
    "train.log_every": (10, "steps between lines of metrics.jsonl; 0: at checkpoints only"),
    "train.eval_every": (500, "steps between evaluations of the held-out loss, also after the last; 0: none"),
    "train.eval_batches": (10, "batches of train.batch_size per evaluation"),
    "train.sample_every": (500, "steps between previews; 0: only at the end"),
    "train.num_preview_samples": (100, "images per preview; 0: no previews"),
    "train.checkpoint_every": (500, "steps between checkpoints; 0: only at the end"),
    "train.keep_last": (2, "recent checkpoints to keep; 0: all"),
    "train.keep_every": (0, "also keep checkpoints at multiples of this step; 0: none"),
    "train.discriminator.learning_rate": (5e-4, "peak learning rate of the discriminator; other fields as in train"),
    "train.generator.update_every": (1, "steps per update of the generator; the discriminator is updated in each step"),
    "train.model.update_every": (5, "steps per update of the generator of distribution matching"),
    "train.fake_score.learning_rate": (1e-3, "peak learning rate of the fake score; other fields as in train"),
    "train.lora.rank": (0, "rank r of LoRA, low-rank updates of the weights of train.start; 0: off"),
    "train.lora.alpha": (8.0, "the updates are scaled by alpha / r"),
    "train.lora.targets": (("*",), "patterns of the paths of adapted kernels: 'qkv'; '*': all dense layers"),
    # Sampler: defaults of the verbs sample, sweep and evaluate, and settings of previews
    "sampler.name": (
        "ddim",
        "sampler: ancestral | ddim(eta=0.5) | heun | unipc | ...; of masked priors: confidence | ancestral_unmasking",
    ),
    "sampler.steps": (50, "sampling steps; of diffusion models from 1 to T"),
    "sampler.schedule": ("cosine", "masking schedule of the steps: linear | cosine | polynomial(power=2)"),
    "sampler.grid": ("trailing", "time grid: leading | trailing | linspace | quadratic | karras | ..."),
    "sampler.threshold": ("clip", "range of predicted images: none | clip | dynamic; none for latents"),
    "sampler.guidance": (1.0, "scale s = 1 + w of classifier-free guidance; 1: no guidance"),
    "sampler.guidance_rescale": (0.0, "share of the unguided contrast that is restored; 0: off"),
    "sampler.guidance_low": (0.0, "lower end of the noise levels sigma / alpha that are guided, exclusive"),
    "sampler.guidance_high": (INF, "upper end of the noise levels sigma / alpha that are guided"),
    "sampler.guidance_rule": (
        "extrapolation",
        "rule of classifier-free guidance: extrapolation | adaptive_projected(eta=0) | zero_star",
    ),
    "sampler.guidance_schedule": ("constant", "the scale over time: constant | linear | cosine | power_cosine"),
    "sampler.guidance_channels": (0, "number of first channels that are guided; 0: all"),
    "sampler.first_condition": ("", "condition with a guidance scale of its own, sampler.first_scale; '': none"),
    "sampler.first_scale": (1.0, "scale of sampler.first_condition alone; sampler.guidance is that of the others"),
    "sampler.classifier_scale": (1.0, "scale of classifier guidance, with --classifier"),
    "sampler.weak_scale": (1.0, "scale of autoguidance, with --weak"),
    "sampler.perturbation": (
        "none",
        "for guidance by the perturbed network: none | identity_attention(0) | skip_blocks(2)",
    ),
    "sampler.perturbed_scale": (1.0, "scale of guidance by the perturbed network; 1: off"),
    "sampler.clip_scale": (0.0, "scale of CLIP guidance"),
    "sampler.augmentation": (0.0, "level of the conditioning augmentation, for upsamplers"),
    "sampler.strength": (1.0, "share of the diffusion process that an edited image is noised to"),
    "sampler.resample_steps": (1, "repetitions of each step for inpainting (RePaint)"),
    "sampler.number": (0.5, "number of samples, for conditions.number"),
    "sampler.keep_known": (True, "inpainting replaces the known region; False: the network alone (Stable Diffusion)"),
    "sampler.temperature": (
        1.0,
        "temperature of tokens, standard deviation of latents, factor of the noise of steps",
    ),
    "sampler.brownian": (False, "noise of one Brownian path per sample, for any number of steps; False: independent"),
    "sampler.cache_interval": (
        1,
        "deep features of the network are computed in every N-th step alone (DeepCache); 1: in all",
    ),
    "sampler.cache_branch_id": (
        0,
        "skip connection of a UNet, or block of a DiT, before the deep features; 0: fastest",
    ),
    "sampler.top_k": (0, "sample among the k most likely tokens; 0: all"),
    "sampler.top_p": (1.0, "sample among the most likely tokens of this total probability; 1: all"),
    "sampler.truncation": (INF, "values of z beyond this are sampled again, for less variety; inf: off"),
    "sampler.prior": ("diffusion", "prior of unCLIP: diffusion | ar | none (the caption's own embedding)"),
    "sampler.candidates": (2, "embeddings sampled per caption; the nearest to the caption's is used"),
    # Rerank
    "rerank.clip": ("@clip", "CLIP that ranks samples and measures them; '': none"),
    "rerank.best_of": (1, "images sampled per caption, of which CLIP selects the best; 1: no reranking"),
    # Published weights: how the files of the network are named, for launch.py import and export
    "published.naming": ("diffusers", "names of tensors: diffusers | openai | compvis | dit | transformers | ..."),
    "published.attention_order": ("contiguous", "queries, keys, values in the file: contiguous | by_head"),
    "published.attention_layers": ("conv1d", "projections of attention in the file: conv1d | conv2d"),
    "published.scaling_factor": (1.0, "factor of the latents of an autoencoder where its file does not have it"),
    # Parallel
    "parallel.mode": ("jit", "distribution: jit (global arrays) | pmap (one SPMD program per device)"),
    "parallel.num_devices": (0, "devices of all processes; 0: all available"),
    "parallel.fsdp": (1, "devices that share one copy of the weights; only with jit"),
    "parallel.tensor": (1, "devices that share each layer of transformers, and each example; only with jit"),
}

GROUPS = {  # fields that are added together; every section is a group of its direct fields too
    "unet": "model.{channels multipliers blocks attention_resolutions dropout time_conditioning resample norm_groups "
    "norm_min_channels}",
    "edm2": "model.{architecture channels multipliers blocks attention_resolutions head_channels dropout}",
    "process": "diffusion.{schedule zero_terminal_snr timesteps continuous}",
    "noising": "diffusion.{schedule zero_terminal_snr timesteps continuous rescale_timesteps time_sampling}",
    "diffusion": "diffusion.{schedule zero_terminal_snr timesteps continuous rescale_timesteps time_sampling "
    "parameterization loss weighting variance coupling}",
    "flow_map": "diffusion.{next_times metric}",
    "labels": "diffusion.{class_conditional label_dropout}",
    "diffusion_sampler": "sampler.{name steps grid threshold guidance guidance_rescale guidance_low guidance_high}",
    "vqvae": "model.{architecture channels residual_channels blocks factor latent_channels}",
    "ldm": "model.{architecture channels multipliers blocks attention_resolutions norm_groups norm_min_channels "
    "dropout latent_channels z_channels}",
    "taesd": "model.{architecture channels blocks factor latent_channels}",
    "dalle": "model.{architecture channels groups blocks latent_channels}",
    "codebook": "codebook.{kind size depth shared levels update_rule estimator entropy_weight decay commitment cosine "
    "dead_code_threshold init}",
    "relaxed_codebook": "codebook.{size temperature temperature_end temperature_steps}",
    "reconstruction": "loss.{likelihood perceptual_file perceptual_weight}",
    "kl": "loss.{beta free_bits}",
    "annealed_kl": "loss.{kl_weight_start kl_weight kl_steps}",
    "pixelcnn_prior": "model.{architecture features layers kernel dropout condition condition_dropout}",
    "transformer_prior": "model.{architecture width layers heads dropout condition condition_dropout}",
    "masked_transformer": "model.{width layers heads dropout condition condition_dropout}",
    "masks": "model.{masks last_mask mask_kernel}",
    "token_sampler": "sampler.{temperature top_k top_p guidance}",
    "masked_sampler": "sampler.{name steps schedule temperature top_k top_p guidance}",
    "conditions.caption": "conditions.caption.{width layers heads dropout}",
    "image_encoder": "image_encoder.{architecture patch width layers heads}",
    "text_encoder": "text_encoder.{width layers heads}",
    "generator": "model.{class_conditional latent channels multipliers norm_groups norm_min_channels}",
}  # fmt: skip

DATASETS = {  # fields of `data` that `new` sets, and `vary` for a variant of this name
    "digits": {},
    "fashion_mnist": {"name": "fashion_mnist", "image_size": 28},
    "cifar10": {"name": "cifar10", "image_size": 32, "flip": True},
    "emoji": {"name": "emoji", "image_size": 32},
    "shapes": {"name": "shapes", "image_size": 32},
}


def new(system: str, *groups: str, data: str = "digits", train: bool = True) -> ConfigDict:
    """Returns a locked config of the fields that all runs have and those of `groups`, with their defaults.

    Args:
      system: the field `system`.
      groups: names of `GROUPS`, of sections (their direct fields) or of fields.
      data: name of `DATASETS`.
      train: whether it has the section `train`; pipelines do not.
    """
    config = ConfigDict().lock()
    training = ["data.augment", "train", "train.lora"] * train
    add(config, "seed", "system", "dtype", "data", *groups, *training, "parallel")
    config.system = system
    config.data.update(DATASETS[data])
    return config


def add(config: ConfigDict, *groups: str) -> None:
    """Adds fields with their defaults: names of `GROUPS`, of sections (their direct fields) or of fields."""
    with config.unlocked():
        for name in (name for group in groups for name in _names(group)):
            path, _, field = name.rpartition(".")
            _section(config, path)[field] = FIELDS[name][0]


def remove(config: ConfigDict, *names: str) -> None:
    """Removes sections or fields by their dotted names."""
    with config.unlocked():
        for name in names:
            section, _, field = name.rpartition(".")
            del (config[section] if section else config)[field]


def add_parts(config: ConfigDict, **parts: ConfigDict | str) -> None:
    """Adds runs that are trained before this one, into folders of its workdir: configs, or names of config files."""
    with config.unlocked(), config.ignore_type():
        _section(config, "parts").update(parts)


def add_stages(config: ConfigDict, **stages: Mapping[str, Any]) -> None:
    """Adds sampler settings of pipeline stages, which replace those of the stages' own configs."""
    with config.unlocked():
        _section(config, "sampler").stages = ConfigDict(stages)


def vary(config: ConfigDict, variant: str, variants: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """Sets the fields of a variant: those of `DATASETS` under its name, then `variants[variant]`, by section.

    Raises:
      UserError: there is no such variant, with the nearest name.
    """
    fields = choose(variant, variants)
    config.data.update(DATASETS.get(variant, {}))
    config.update(fields)
    return config


def choose(variant: str, variants: Mapping[str, T]) -> T:
    """Returns `variants[variant]`.

    Raises:
      UserError: there is no such variant, with the nearest name.
    """
    if variant not in variants:
        raise unknown("variant", variant, variants)
    return variants[variant]


def _section(config: ConfigDict, path: str) -> ConfigDict:
    """Returns the section of a dotted name, which it adds to an unlocked config if it does not exist."""
    for name in path.split(".") if path else ():
        if name not in config:
            config[name] = ConfigDict()
        config = config[name]
    return config


def _names(group: str) -> list[str]:
    """Returns the names of a group's fields."""
    if group in GROUPS:
        section, fields = GROUPS[group].rstrip("}").split(".{")
        return [f"{section}.{field}" for field in fields.split()]
    names = [name for name in FIELDS if name == group or name.rpartition(".")[0] == group]
    if not names:
        raise unknown("group, section or field of configs/common.py", group, {*GROUPS, *FIELDS})
    return names
