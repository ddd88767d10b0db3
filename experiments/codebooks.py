"""Codebooks of a VQ-VAE: use of the codes against the size of the codebook, by quantizer.

    python launch.py reproduce --experiment=experiments/codebooks.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/codebooks.py --workdir=runs/experiments --scale=small

Finite scalars (FSQ) have the paper's 8x6x5 and 8x5x5x5 values per position, 240 and 1000, and here 8x8; the other
quantizers have 64, 256 and 1024 codes of 16 dimensions. Codes are those of test images.
"""

from collections.abc import Mapping

from diffjax.reproduce import Axis, Experiment, Fields, Measure, Ordering, Scale, smoke

QUANTIZER: Mapping[str, Fields] = {
    "running means": {},
    "running means, no restart": {"codebook.dead_code_threshold": 0.0},
    "codebook loss": {"codebook.update_rule": "gradient"},
    "cosine similarity": {"codebook.cosine": True},
    "finite scalars": {"codebook.kind": "fsq"},
}
LEVELS = {"64": (8, 8), "256": (8, 6, 5), "1024": (8, 5, 5, 5)}
USED = "reconstruction.codes.0.used"


def size(label: str) -> Mapping[str, Fields]:
    """Returns the fields of a size, by quantizer."""
    finite = {"codebook.levels": LEVELS[label], "model.latent_channels": len(LEVELS[label])}
    return {name: finite if name == "finite scalars" else {"codebook.size": int(label)} for name in QUANTIZER}


def measures(num: int, *others: Measure) -> list[Measure]:
    return [
        Measure("reconstruction", "codes.0.used", "proportion of codes in use", "higher", {"num": num}),
        Measure("reconstruction", "codes.0.perplexity", "perplexity of the codes", "higher", {"num": num}),
        Measure("reconstruction", "mse", heading="MSE of reconstructions", settings={"num": num}),
        *others,
    ]


EXPERIMENT = Experiment(
    title="Codebooks: use of the codes by size and quantizer",
    source="Mentzer et al. 2024 (FSQ), abstract",
    claim="Finite scalars do not suffer from codebook collapse, and need no commitment loss and no restarts.",
    axes=[Axis("quantizer", QUANTIZER), Axis("codes", {label: size(label) for label in LEVELS}, by="quantizer")],
    column_axis="codes",
    measures=measures(360, Measure("recon_fd_pixels")),
    orderings=[
        *(
            Ordering(
                claim=f"Of the largest codebook, finite scalars use a larger share than {name}",
                order=[{"quantizer": "finite scalars"}, {"quantizer": name}],
                where={"codes": ("1024",)},
                measure=USED,
            )
            for name in QUANTIZER
            if name != "finite scalars"
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
            axes={"codes": ("64", "1024")},
            measures=measures(100),
        ),
        "small": Scale(
            config="configs/vqvae.py",
            duration="45 trainings of 2000 steps, estimated at two hours on two CPU cores",
            fields={"train.steps": 2000, "train.num_preview_samples": 0, "train.eval_every": 0},
            seeds=(0, 1, 2),
            num=360,
        ),
        "paper": Scale(
            config="configs/vqvae.py:cifar10",
            duration="15 trainings of 20,000 steps; CIFAR-10 in the place of ImageNet",
            num=10_000,
            measures=measures(10_000, Measure("recon_fid")),
        ),
    },
)
