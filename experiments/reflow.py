"""Straight flows: reflow, and noise that is coupled with data by optimal transport.

    python launch.py reproduce --experiment=experiments/reflow.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/reflow.py --workdir=runs/experiments --scale=small

All flows have the same network, optimiser and number of training steps. The reflowed one starts from the weights of the
flow whose samples it is trained on, as in the paper.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, few_step_scales, steps

FEW, DISTILLED = "configs/few_step_digits.py", "configs/distilled_digits.py"
FLOWS = {
    "flow": {"config": f"{FEW}:flow"},
    "minibatch coupling": {"config": f"{FEW}:ot_flow"},
    "reflow": {"config": f"{DISTILLED}:reflow"},
}
STRAIGHTNESS = Measure("straightness", "relative", heading="straightness", settings={"num": 200})

EXPERIMENT = Experiment(
    title="Rectified flow, table 1: reflow",
    source="Liu, Gong & Liu 2023, table 1 (CIFAR-10); Pooladian et al. 2023 and Tong et al. 2024 for the coupling",
    claim="A flow that is trained on samples of a flow is straight: one step is enough, at little cost in many steps.",
    axes=[Axis("flow", FLOWS), steps(1, 2, 50)],
    column_axis="steps",
    measures=[Measure("fd_pixels"), Measure("kd_pixels"), STRAIGHTNESS],
    papers=[
        Paper(
            "FID of 50,000 samples, CIFAR-10; the last column is RK45 with 127 and 110 evaluations",
            {("flow", "1"): 378.0, ("reflow", "1"): 12.21, ("flow", "50"): 2.58, ("reflow", "50"): 3.36},
        )
    ],
    orderings=[
        Ordering(
            claim="In one step reflow is better than a flow",
            order=[{"flow": "reflow"}, {"flow": "flow"}],
            where={"steps": ("1",)},
        ),
        Ordering(
            claim="In many steps a flow is better than reflow",
            order=[{"flow": "flow"}, {"flow": "reflow"}],
            where={"steps": ("50",)},
        ),
        Ordering(
            claim="In one step minibatch coupling is better than independent noise",
            order=[{"flow": "minibatch coupling"}, {"flow": "flow"}],
            where={"steps": ("1",)},
        ),
        *(
            Ordering(
                claim=f"{better} is straighter than {other}",
                order=[{"flow": better.lower()}, {"flow": other.replace("independent noise", "flow")}],
                where={"steps": ("50",)},
                measure=STRAIGHTNESS.name,
            )
            for better, other in (("Reflow", "minibatch coupling"), ("Minibatch coupling", "independent noise"))
        ),
    ],
    scales=few_step_scales(f"{FEW}:flow", {"steps": ("1", "50")}, [Measure("fd_pixels"), STRAIGHTNESS]),
)
