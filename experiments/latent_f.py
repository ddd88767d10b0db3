"""Latent diffusion (Rombach et al. 2022), figures 6 and 7: by how much the first stage shrinks, at as many steps.

    python launch.py reproduce --experiment=experiments/latent_f.py --workdir=runs/experiments --scale=small

f 1 is diffusion of pixels. The paper publishes curves, of pictures of 256x256, where 4 to 16 are best; ours are of
32x32, of emoji 64x64, where 8 leaves 4x4 and 8x8 latents. Networks are the configs', not of one size.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale

TINY = {
    "*train.steps": 20,
    "*train.sample_count": 0,
    "model.channels": 32,
    "*conditions.caption.width": 32,
}
MULTIPLIERS = {"2": (1, 2), "4": (1, 2, 4), "8": (1, 2, 2, 4)}  # of the autoencoder of emoji


def shrunk(f: str):
    def fields(config):
        if f == "1":
            whole = {"diffusion.downsample": 1, "model.multipliers": (1, 2, 2, 2)}
            return {"config": f"configs/glide_base.py:{config.data.name}", **whole}
        if config.data.name == "shapes":
            return {"config": f"configs/latent_shapes.py:f{f}"}
        sides = tuple(side for side in config.model.attention_resolutions if side * int(f) <= config.data.image_size)
        return {"parts.codec.model.multipliers": MULTIPLIERS[f], "model.attention_resolutions": sides}

    return fields


EXPERIMENT = Experiment(
    title="Latent diffusion: f",
    source="Rombach et al. 2022, section 4.1, figures 6 and 7 (curves, no table)",
    claim="Latents of f 4 to 16 are learnt faster than pixels; f 32 loses too much, f 1 and 2 leave too much to learn.",
    axes=[Axis("f", {f: shrunk(f) for f in ("1", *MULTIPLIERS)})],
    across="f",
    measures=[
        Measure("fd_effnet_lite0"),
        Measure("captions", "captions"),
        Measure("captions", "caption_relation"),
        Measure("manifold_effnet_lite0", "precision_effnet_lite0"),
        Measure("manifold_effnet_lite0", "recall_effnet_lite0"),
    ],
    orderings=[
        Ordering("Latents of f 4 make better pictures than those of f 2", [{"f": "4"}, {"f": "2"}]),
        Ordering("and than pixels", [{"f": "4"}, {"f": "1"}]),
        Ordering("and show the caption more often than these", [{"f": "4"}, {"f": "1"}], measure="captions"),
    ],
    scales={
        "smoke": Scale(
            "configs/latent_shapes.py",
            "ten minutes on two CPU cores",
            fields=TINY,
            axes={"f": ("1", "4")},
            num=20,
            measures=[Measure("fd_pixels"), Measure("captions")],
        ),
        "small": Scale(
            "configs/latent_shapes.py",
            "two hours on two CPU cores",
            fields={"train.steps": 1000},
            num=200,
        ),
        "paper": Scale(
            "configs/latent_emoji.py",
            "four days on one GPU; the configs as they stand, on data of ours",
            num=1000,
            measures=[Measure("fid"), Measure("manifold_inception", "recall_inception")],
        ),
    },
)
