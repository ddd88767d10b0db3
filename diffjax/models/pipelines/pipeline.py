"""Systems whose samples go from stage to stage: each is a trained system, and all are drawn by one compiled program.

A chain trains nothing itself. Its config names its stages; in `sampler.stages` it has settings of each by its name, in
the place of those of the stage's own config. Overrides without a stage's name are of the one that draws the picture.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
from jaxtyping import Array

from diffjax.diffusion import sampling
from diffjax.errors import UserError, unknown
from diffjax.typing import Images, Objective, PRNGKeys, System, TextSpec, Variables

Part = tuple[System, Variables]  # of a stage `plan` is bound to the sampler section of its own config
Enlarged = Sequence[tuple[str, System]]


@flax.struct.dataclass
class ChainPlan:
    """How to sample every stage. Plans of equal choices share a compilation."""

    stages: dict[str, Any]
    choices: tuple = flax.struct.field(pytree_node=False)  # (name, value) each
    main: str = flax.struct.field(pytree_node=False)  # stage whose settings are those without a stage's name

    @property
    def steps(self) -> int:
        """Of all stages together; those that draw code after code have none."""
        return sum(int(getattr(plan, "steps", 0)) for plan in self.stages.values())

    def __getitem__(self, name: str):
        return dict(self.choices)[name]


def make_planner(
    parts: Mapping[str, Part | None],
    main: str,
    choices: Mapping[str, Any] = {},
    skip: Callable[[str, Mapping[str, Any]], bool] = lambda name, chosen: False,
) -> Callable[..., ChainPlan]:
    """The `plan` of a chain.

    Args:
      parts: the stages by name; None: left out, and so are a config's settings of it. Overrides are named
        `stage:setting`.
      main: whose settings are those without a name.
      choices: the chain's own settings, which are no traced inputs, and what they are unless told otherwise.
      skip: (name of a stage, the choices) -> whether it takes no part.
    """

    stages = {name: part[0] for name, part in parts.items() if part}

    def plan(sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides) -> ChainPlan:
        own = dict(sampler_config)
        told = own.pop("stages", {})
        sections = {name: dict(section) for name, section in told.items() if name in stages or name not in parts}
        chosen = {**choices, **own}
        for name, value in overrides.items():
            stage, colon, setting = name.rpartition(":")
            if not colon and name in choices:
                chosen[name] = value
            else:
                sections.setdefault(stage or main, {})[setting] = value
        for name in sections:
            if name not in stages:
                raise unknown("stage", name, stages)
        for name in chosen:
            if name not in choices:
                raise unknown("field of config.sampler", name, (*choices, "stages"))
        for name in overrides:
            stage = name.rpartition(":")[0]
            if stage in stages and skip(stage, chosen):
                raise UserError(f"{name} is a setting of a stage that takes no part: see --prior")
        plans = {
            name: stage.plan(capacity=capacity, **sections.get(name, {}))
            for name, stage in stages.items()
            if not skip(name, chosen)
        }
        return ChainPlan(plans, tuple(sorted(chosen.items())), main)

    return plan


def enlarge(
    upsamplers: Enlarged,
    variables: Variables,
    keys: PRNGKeys,
    asked: Mapping[str, Array],
    image: Images,
    plan: ChainPlan,
) -> Images:
    """What each upsampler makes of the picture of the one before it."""
    for i, (name, stage) in enumerate(upsamplers):
        told = {**asked, "smaller_image": image.clip(-1.0, 1.0)}
        image = stage.sample(variables["frozen"][name], sampling.fold_in(keys, i), told, plan.stages[name])
    return image


def upsamplers_of(systems: Mapping[str, System], drawn: int) -> tuple[Enlarged, int]:
    """The upsamplers among stages, behind one that draws a side of `drawn`; and the side that the last gives.

    Raises UserError where one takes another size than is drawn before it.
    """
    upsamplers = [(name, systems[name]) for name in ("upsampler", "upsampler_2") if name in systems]
    for name, stage in upsamplers:
        takes = stage.takes.get("smaller_image")
        if takes is None:
            raise UserError(f"{name} enlarges no picture: its config has no conditions.smaller_image")
        if takes != drawn:
            raise UserError(
                f"{name} enlarges pictures of {takes}x{takes}, and before it {drawn}x{drawn} are drawn: they must agree"
            )
        drawn = stage.gives
    return upsamplers, drawn


def text_of(stages: Mapping[str, System]) -> TextSpec | None:
    """The text that stages read. Raises UserError where they read it differently."""
    specs = {name: stage.text for name, stage in stages.items() if stage.text is not None}
    if len(set(specs.values())) > 1:
        told = ", ".join(f"{name} {text.length} of {text.vocabulary}" for name, text in specs.items())
        raise UserError(f"the stages read texts of one length and vocabulary, and here are {told} tokens")
    return next(iter(specs.values()), None)


def missing(system: str, name: str, config: str) -> UserError:
    """The error for a stage that is not there, which the file `config` trains."""
    return UserError(
        f"system={system} needs a stage {name}: `python launch.py train --config=configs/{config}.py --workdir=RUN` "
        f"trains one, --config.{name}=RUN names it; or name it in parts"
    )


def make_chain(
    parts: Mapping[str, Part | None],
    plan: Callable,
    sample: Callable,
    text: TextSpec | None,
    classes: int = 0,
    **fields,
) -> System:
    """The system of trained parts, which has no parameters but theirs, variables["frozen"] by name."""
    return System(
        Objective(lambda key: {"params": {}}, {}),
        classes,
        plan,
        sample,
        text=text,
        stages=tuple(name for name, part in parts.items() if part and part[0].sample),
        frozen={name: part[1] for name, part in parts.items() if part},
        **fields,
    )


def without_edits(asked: Mapping[str, Array]) -> dict[str, Array]:
    """What upsamplers are asked: the known part of a picture that is painted in, but no picture to start from."""
    return only(asked, "tokens", *(("image", "mask") if "mask" in asked else ()))


def only(asked: Mapping[str, Array], *names: str) -> dict[str, Array]:
    """Of what is asked the fields that a stage takes."""
    return {name: asked[name] for name in ("label", *names) if name in asked}
