"""Samplers and time grids in 5 to 20 evaluations, without training for few steps.

    python launch.py reproduce --experiment=experiments/fast_samplers.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/fast_samplers.py --workdir=runs/experiments --scale=small

All samplers but that of the SDE solve the same ODE, without guidance and clipping. So their difference from their own
samples in 100 evaluations is the error of the method; samples of the SDE also differ in their noise. A sampler has as
many steps as fit in the evaluations, where the last step takes one. So do steps from nearly pure noise, so those of
several evaluations may take fewer than allowed. One trained run has all cells, that of guidance_interval.py.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale, smoke

GRID = {
    "time": {"sampler.grid": "trailing"},
    "log-SNR": {"sampler.grid": "log_snr"},
    "Karras": {"sampler.grid": "karras"},
    "polyexponential": {"sampler.grid": "log_snr(rho=2)"},
    "AYS": {"sampler.grid": "ays_sd15"},
}
GRIDS = tuple(GRID)
SAMPLER = {  # sampler.name, evaluations of a step, grids
    "DDIM": ("ddim", 1, GRIDS[:3]),
    "iPNDM": ("ipndm", 1, GRIDS[:3]),
    "DEIS": ("deis", 1, GRIDS[:3]),
    "DPM-Solver++": ("dpmpp_2m", 1, GRIDS),
    "UniPC": ("unipc", 1, GRIDS[:3]),
    "Heun": ("heun", 2, GRIDS[:1]),
    "DPM-Solver-2": ("dpm_solver", 2, GRIDS[:1]),
    "DPM-Solver-3": ("dpm_solver(order=3)", 3, GRIDS[:1]),
    "DPM-Solver++(2S)": ("dpm_solver(data=True)", 2, GRIDS[:1]),
    "SDE-DPM-Solver++": ("dpmpp_2m_sde", 1, GRIDS[:1]),
}
ERROR, FEW = "rms_to_finest_grid", ("5", "10", "20")
ODE = {"sampler.guidance": 1.0, "sampler.threshold": "none"}


def evaluations(count: str) -> dict[str, dict]:
    return {name: {"sampler.steps": (int(count) - 1) // each + 1} for name, (_, each, _) in SAMPLER.items()}


EXPERIMENT = Experiment(
    title="Samplers and time grids in few steps",
    source="Lu et al. 2022 (DPM-Solver), Lu et al. 2022b (DPM-Solver++), Zhao et al. 2023 (UniPC), Zhang & Chen 2023 "
    "(DEIS), Karras et al. 2022, Sabour et al. 2024 (AYS; no one table)",
    claim="Multistep solvers of higher order need fewer evaluations than DDIM, and the time grid matters as much.",
    axes=[
        Axis("grid", GRID),
        Axis(
            "sampler",
            {name: {grid: {"sampler.name": choice} for grid in grids} for name, (choice, _, grids) in SAMPLER.items()},
            by="grid",
        ),
        Axis("evaluations", {count: evaluations(count) for count in (*FEW, "100")}, by="sampler"),
    ],
    column_axis="evaluations",
    measures=[
        Measure(ERROR, heading="RMS to 100 evaluations, grey levels"),
        Measure("fd_pixels"),
        Measure("kd_pixels"),
    ],
    orderings=[
        *(
            Ordering(
                claim=f"{closer} is closer to the solution than {other}",
                order=[{"sampler": closer}, {"sampler": other}],
                where={"evaluations": FEW},
                measure=ERROR,
            )
            for closer, other in (
                *((name, "DDIM") for name in SAMPLER if name not in ("DDIM", "SDE-DPM-Solver++")),
                ("UniPC", "DPM-Solver++"),
                ("DPM-Solver++", "DPM-Solver++(2S)"),
                ("DPM-Solver-3", "DPM-Solver-2"),
            )
        ),
        *(
            Ordering(
                claim=f"The grid {grid} is better than even steps in time",
                order=[{"grid": grid}, {"grid": "time"}],
                where={"sampler": ("DPM-Solver++", "UniPC"), "evaluations": FEW},
                measure=ERROR,
            )
            for grid in GRIDS[1:]
        ),
        Ordering(
            claim="DPM-Solver++ is better on the ODE than on the SDE",
            order=[{"sampler": "DPM-Solver++"}, {"sampler": "SDE-DPM-Solver++"}],
            where={"evaluations": FEW},
            measure="fd_pixels",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields=ODE,
            axes={
                "grid": ("time", "Karras"),
                "sampler": ("DDIM", "UniPC", "DPM-Solver-2"),
                "evaluations": ("5", "10", "100"),
            },
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
