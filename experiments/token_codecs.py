"""VQ-VAE and dVAE as the autoencoder of the same causal transformer.

    python launch.py reproduce --experiment=experiments/token_codecs.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/token_codecs.py --workdir=runs/experiments --scale=small

DALL-E (Ramesh et al. 2021) has a dVAE, and van den Oord et al. (2017) a VQ-VAE. Neither paper compares them, so the
claims are not those of a paper. Both have the same grid of tokens with the same number of values.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale, smoke

CODEC = {
    "VQ-VAE": {"config": "configs/masked_digits.py:causal"},
    "dVAE": {"config": "configs/masked_digits.py:causal_dvae"},
}
BITS = [
    Measure("nll", "codes", heading="bits/dim of the images, as codes", better="neither"),
    Measure("nll", "bits_per_code", heading="bits per code", better="neither"),
]
DVAE_FIRST, VQ_FIRST = ([{"codec": name} for name in order] for order in (("dVAE", "VQ-VAE"), ("VQ-VAE", "dVAE")))

EXPERIMENT = Experiment(
    title="VQ-VAE and dVAE as the codec of a transformer",
    source="Ramesh et al. 2021, section 2.1 (DALL-E's dVAE); no table compares them",
    claim="A transformer can model the tokens of either autoencoder.",
    axes=[Axis("codec", CODEC)],
    measures=[Measure("fd_pixels"), Measure("kd_pixels"), Measure("classifier_accuracy"), *BITS],
    orderings=[
        Ordering(claim="Samples are better with the VQ-VAE", order=VQ_FIRST),
        Ordering(
            claim="The dVAE's tokens have fewer bits",
            order=DVAE_FIRST,
            measure="nll.bits_per_code",
            direction="lower",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/masked_digits.py:causal",
            duration="minutes on two CPU cores; not measured",
            train_steps=60,
            fields={"*train.warmup_steps": 10},
            measures=[Measure("fd_pixels"), BITS[1]],
        ),
        "small": Scale(
            config="configs/masked_digits.py:causal",
            duration="six trainings of 1500 steps and six codecs, estimated at 20 minutes on one core of an Intel Xeon",
            fields={"*train.num_preview_samples": 0, "*train.eval_every": 0},
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/masked_digits.py:causal",
            duration="not measured; Fashion-MNIST in the place of the paper's images",
            fields={"*data.name": "fashion_mnist", "*data.image_size": 28, "*train.steps": 20_000},
            num=10_000,
            measures=[Measure("fd_effnet_lite0"), Measure("classifier_accuracy"), *BITS],
        ),
    },
)
