"""Samplers and time grids in 5 to 20 evaluations, without training for few steps.

    python launch.py reproduce --experiment=experiments/fast_samplers.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/fast_samplers.py --workdir=runs/experiments --scale=small

All samplers solve the same ODE with one evaluation per step, without guidance and clipping. So their difference from
their own samples in 100 steps is the error of the method. One trained run has all cells, that of guidance_interval.py.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale, smoke, steps

SAMPLER = {
    "DDIM": {"sampler.name": "ddim"},
    "iPNDM": {"sampler.name": "ipndm"},
    "DEIS": {"sampler.name": "deis"},
    "DPM-Solver++": {"sampler.name": "dpmpp_2m"},
    "UniPC": {"sampler.name": "unipc"},
}
GRID = {
    "time": {"sampler.grid": "trailing"},
    "log-SNR": {"sampler.grid": "log_snr"},
    "Karras": {"sampler.grid": "karras"},
}
ERROR, FEW = "rms_to_finest_grid", ("5", "10", "20")
ODE = {"sampler.guidance": 1.0, "sampler.threshold": "none"}

EXPERIMENT = Experiment(
    title="Samplers and time grids in few steps",
    source="Lu et al. 2022 (DPM-Solver++), Zhao et al. 2023 (UniPC), Zhang & Chen 2023 (DEIS), Karras et al. 2022 "
    "(no one table)",
    claim="Multistep solvers of higher order need fewer evaluations than DDIM, and the time grid matters as much.",
    axes=[Axis("grid", GRID), Axis("sampler", SAMPLER), steps(5, 10, 20, 100)],
    column_axis="steps",
    measures=[Measure(ERROR, heading="RMS to 100 steps, grey levels"), Measure("fd_pixels"), Measure("kd_pixels")],
    orderings=[
        *(
            Ordering(
                claim=f"{name} is closer to the solution than DDIM",
                order=[{"sampler": name}, {"sampler": "DDIM"}],
                where={"steps": FEW},
                measure=ERROR,
            )
            for name in list(SAMPLER)[1:]
        ),
        Ordering(
            claim="UniPC is closer to the solution than DPM-Solver++",
            order=[{"sampler": "UniPC"}, {"sampler": "DPM-Solver++"}],
            where={"steps": FEW},
            measure=ERROR,
        ),
        *(
            Ordering(
                claim=f"The grid {grid} is better than even steps in time",
                order=[{"grid": grid}, {"grid": "time"}],
                where={"sampler": ("DPM-Solver++", "UniPC"), "steps": FEW},
                measure=ERROR,
            )
            for grid in ("log-SNR", "Karras")
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields=ODE,
            axes={"grid": ("time", "Karras"), "sampler": ("DDIM", "UniPC"), "steps": ("5", "10", "100")},
            measures=[Measure(ERROR), Measure("fd_pixels")],
            num=50,
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="not measured; one training of three minutes per seed on two CPU cores",
            fields=ODE,
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="not measured; one training of 800,000 steps",
            fields=ODE,
            num=50_000,
            measures=[Measure(ERROR), Measure("fid")],
        ),
    },
)
