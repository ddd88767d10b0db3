"""Likelihood in few steps: the ODE of flows and flow maps is not solved by as few steps as their samples need.

    python launch.py reproduce --experiment=experiments/few_steps_likelihood.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/few_steps_likelihood.py --workdir=runs/experiments --scale=small

Bits/dim by Heun's method on the probability-flow ODE, whose velocity is that of a flow map over an interval of length
zero. N steps go from the least noise of training to the most in N - 1 intervals. The paper
has Euler's method. Models are those of experiments/few_steps.py.
"""

import dataclasses

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, few_step_scales, steps

FEW = "configs/few_step_digits.py"
METHOD = {
    "flow": {"config": f"{FEW}:flow"},
    "shortcut": {"config": f"{FEW}:shortcut"},
    "MeanFlow": {"config": f"{FEW}:mean_flow"},
}
BITS = Measure(
    "nll", "ode_hutchinson", heading="bits/dim", better="neither", settings={"num": 360, "terms": 2, "exact_trace": 0}
)
PUBLISHED = {  # in 2, 4 and 8 steps
    "flow": (-52.85, -24.01, -9.93),
    "shortcut": (-60.01, -28.03, -12.07),
    "MeanFlow": (-46.63, -21.26, -9.00),
}

EXPERIMENT = Experiment(
    title="F2D2: likelihood in few steps",
    source="Ai et al. 2026, table of CIFAR-10",
    claim="Models that sample in few steps have no valid likelihood in as few steps: its ODE needs many.",
    axes=[Axis("method", METHOD), steps(2, 4, 8, 50, 200)],
    column_axis="steps",
    measures=[BITS, Measure("fd_pixels")],
    papers=[
        Paper(
            "bits/dim, CIFAR-10, Euler; flow matching has 3.12 in 1,024 steps",
            {(name, n): bits for name, row in PUBLISHED.items() for n, bits in zip("248", row, strict=True)},
        )
    ],
    orderings=[
        *(
            Ordering(
                claim=f"Bits/dim in {fewer} steps are below those in {more}",
                order=[{"steps": more}, {"steps": fewer}],
                direction="higher",
            )
            for fewer, more in (("2", "4"), ("4", "8"), ("8", "200"))
        ),
    ],
    scales=few_step_scales(
        f"{FEW}:flow",
        {"method": ("flow", "MeanFlow"), "steps": ("2", "8", "200")},
        [dataclasses.replace(BITS, settings={**BITS.settings, "num": 20})],
    ),
)
