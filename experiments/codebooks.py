"""Codebooks of a VQ-VAE: use of the codes against the size of the codebook, by quantizer.

    python launch.py reproduce --experiment=experiments/codebooks.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/codebooks.py --workdir=runs/experiments --scale=small

Finite scalars (FSQ) have the paper's 8x6x5 and 8x5x5x5 values per position, 240 and 1000, and here 8x8; signs, those of
lookup-free quantisation, have a channel per bit. The other quantizers have 64, 256 and 1024 codes of 16 dimensions.
Unused codes are restarted with running means and with cosine similarity only. Codes are those of test images.
"""

from collections.abc import Mapping

from diffjax.reproduce import Axis, Experiment, Fields, Measure, Ordering, Scale, smoke

NO_RESTART = {"codebook.dead_code_threshold": 0.0}
LOSS = {"codebook.update_rule": "gradient", **NO_RESTART}
QUANTIZER: Mapping[str, Fields] = {
    "running means": {},
    "running means, no restart": NO_RESTART,
    "cosine similarity": {"codebook.cosine": True},
    "codebook loss": LOSS,
    "codebook loss, rotation": {**LOSS, "codebook.estimator": "rotation"},
    "linear map": {"codebook.update_rule": "linear", **NO_RESTART},
    "finite scalars": {"codebook.kind": "fsq"},
    "signs": {"codebook.kind": "lfq"},
}
LEVELS = {"64": (8, 8), "256": (8, 6, 5), "1024": (8, 5, 5, 5)}
MORE_IN_USE = {  # claimed to use a larger share of a codebook, and by whom
    "finite scalars": "Mentzer et al. 2024",
    "linear map": "Zhu et al. 2024",
    "codebook loss, rotation": "Fifty et al. 2024",
}
USED = "reconstruction.codes.0.used"


def size(label: str) -> Mapping[str, Fields]:
    """Returns the fields of a size, by quantizer."""
    count, levels = int(label), LEVELS[label]
    learned = {name: {"codebook.size": count} for name in QUANTIZER}
    finite = {"codebook.levels": levels, "model.latent_channels": len(levels)}
    return {**learned, "finite scalars": finite, "signs": {"model.latent_channels": count.bit_length() - 1}}


def measures(num: int, *others: Measure) -> list[Measure]:
    return [
        Measure("reconstruction", "codes.0.used", "proportion of codes in use", "higher", {"num": num}),
        Measure("reconstruction", "codes.0.perplexity", "perplexity of the codes", "higher", {"num": num}),
        Measure("reconstruction", "mse", heading="MSE of reconstructions", settings={"num": num}),
        *others,
    ]


EXPERIMENT = Experiment(
    title="Codebooks: use of the codes by size and quantizer",
    source=", ".join(MORE_IN_USE.values()) + " (FSQ, SimVQ and the rotation trick, abstracts)",
    claim="Finite scalars, a linear map of fixed entries, and rotated gradients keep more of a large codebook in use.",
    axes=[Axis("quantizer", QUANTIZER), Axis("codes", {label: size(label) for label in LEVELS}, by="quantizer")],
    column_axis="codes",
    measures=measures(360, Measure("recon_fd_pixels")),
    orderings=[
        *(
            Ordering(
                claim=f"Of the largest codebook, more is in use with {name} than with the codebook loss ({paper})",
                order=[{"quantizer": name}, {"quantizer": "codebook loss"}],
                where={"codes": ("1024",)},
                measure=USED,
            )
            for name, paper in MORE_IN_USE.items()
        ),
        Ordering(
            claim="Restarts of unused codes raise the share in use",
            order=[{"quantizer": "running means"}, {"quantizer": "running means, no restart"}],
            measure=USED,
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/vqvae.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=60,
            fields={"train.warmup_steps": 10},
            axes={"codes": ("1024",)},
            measures=measures(100),
        ),
        "small": Scale(
            config="configs/vqvae.py",
            duration="72 trainings of 600 steps, estimated at half an hour on one core of an Intel Xeon",
            fields={"train.steps": 600, "train.num_preview_samples": 0, "train.eval_every": 0},
            seeds=(0, 1, 2),
            num=360,
        ),
        "paper": Scale(
            config="configs/vqvae.py:cifar10",
            duration="24 trainings of 20,000 steps; CIFAR-10 in the place of ImageNet",
            num=10_000,
            measures=measures(10_000, Measure("recon_fid")),
        ),
    },
)
