"""The controls of one run: what to sample, and the sampling settings that the run supports."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from diffjax.demo.capabilities import Capabilities
from diffjax.demo.widgets import (
    KINDS,
    MAX_IMAGES,
    MAX_SEED,
    Setting,
    flags_of,
    make_setting,
    random_seed,
    values_of,
)
from diffjax.errors import UserError
from diffjax.parsing import number

ALL_CLASSES = "all classes"


@dataclasses.dataclass(frozen=True)
class Field:
    """A control that is not a sampling setting.

    Attributes:
      name: its flag, or "random" for the choice of the seed.
      default: value of the control without the flag.
      component: the control.
    """

    name: str
    default: Any
    component: gr.components.Component


class Form:
    """Controls of a run, made in the current gradio context.

    Attributes:
      name: name of the run.
      capabilities: what it supports.
      settings: controls of its sampling settings.
      components: all controls; `flags` takes their values in this order.
    """

    def __init__(self, name: str, capabilities: Capabilities):
        """Makes the controls of the condition, the number of images and the seed."""
        self.name, self.capabilities = name, capabilities
        self.settings: list[Setting] = []
        self._fields: list[Field] = []
        self._add_condition()
        with gr.Row():
            self._add("num", self.default_num, gr.Number, label="Images", precision=0, minimum=1, maximum=MAX_IMAGES)
            self._add("seed", 0, gr.Number, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            self._add("random", False, gr.Checkbox, label="Random seed")

    def add_settings(self) -> None:
        """Makes the controls of the sampling settings that the run supports."""
        capabilities = self.capabilities
        if capabilities.best_of:
            info = "samples this many and shows the most similar to the prompt; 0: off"
            options = {"precision": 0, "minimum": 0, "maximum": 1024}
            self._add("best_of", 0, gr.Number, label="Best of (by CLIP)", info=info, **options)
        self._add_settings("", capabilities.settings)
        for stage, settings in capabilities.stages.items():
            self._add_settings(stage, settings)

    @property
    def default_num(self) -> int:
        """Number of images at first: fewer if they are large."""
        return 16 if self.capabilities.image_size <= 64 else 4

    @property
    def components(self) -> list[gr.components.Component]:
        return [part.component for part in (*self._fields, *self.settings)]

    @property
    def field_names(self) -> set[str]:
        """Names of the controls that are not sampling settings."""
        return {field.name for field in self._fields}

    @property
    def seed(self) -> gr.components.Component:
        return next(field.component for field in self._fields if field.name == "seed")

    def flags(self, values: Sequence[Any], *, needs_prompt: bool = True) -> dict[str, str]:
        """Returns the flags of `launch.py sample` for the values of the controls.

        Args:
          values: values of `components`.
          needs_prompt: whether an empty prompt is an error.

        Raises:
          UserError: a value is missing or out of range.
        """
        count = len(self._fields)
        named = {field.name: value for field, value in zip(self._fields, values[:count], strict=True)}
        if needs_prompt and "prompt" in named and not (named["prompt"] or "").strip():
            raise UserError("prompt: is empty; write a caption")
        num = _whole("images", named["num"], 1, MAX_IMAGES)
        seed = random_seed() if named["random"] else _whole("seed", named["seed"], 0, MAX_SEED)
        flags = {"num": str(num), "seed": str(seed)}
        for name in ("prompt", "negative_prompt"):
            if (named.get(name) or "").strip():
                flags[name] = " ".join(named[name].split())
        if named.get("label", ALL_CLASSES) != ALL_CLASSES:
            flags["label"] = str(named["label"])
        if named.get("best_of"):
            flags["best_of"] = str(_whole("best of", named["best_of"], 1, 1024))
        return flags | self.setting_flags(values)

    def setting_flags(self, values: Sequence[Any]) -> dict[str, str]:
        """Returns the flags of the sampling settings and of the checkpoint alone."""
        count = len(self._fields)
        named = {field.name: value for field, value in zip(self._fields, values[:count], strict=True)}
        step = named.get("checkpoint", self._last_checkpoint)
        flags = {} if step == self._last_checkpoint else {"checkpoint": str(step)}
        return flags | flags_of(self.settings, values[count:])

    def values(self, flags: Mapping[str, str]) -> list[Any]:
        """Returns the values of the controls for flags, in the order of `components`.

        Raises:
          UserError: a value that cannot be read.
        """
        values = []
        for field in self._fields:
            text = flags.get(field.name)
            is_number = isinstance(field.default, int) and not isinstance(field.default, bool)
            values.append(field.default if text is None else _integer(field.name, text) if is_number else text)
        return [*values, *values_of(self.settings, flags)]

    def unknown_flags(self, flags: Mapping[str, str]) -> list[str]:
        """Returns the names of flags without a control in this form."""
        known = self.field_names | {setting.flag for setting in self.settings}
        return sorted(flags.keys() - known - {"workdir", "batch_size", "checkpoint", "out"})

    @property
    def _last_checkpoint(self) -> str:
        return str(self.capabilities.checkpoints[-1]) if self.capabilities.checkpoints else ""

    def _add(self, name: str, default: Any, component: Any, **options: Any) -> None:
        self._fields.append(Field(name, default, component(value=default, min_width=90, **options)))

    def _add_condition(self) -> None:
        capabilities = self.capabilities
        if capabilities.text:
            self._add(
                "prompt", "", gr.Textbox, label="Prompt", lines=2, placeholder="a small red circle", max_length=1000
            )
            if capabilities.negative_prompt:
                hint = "a caption that guidance moves away from"
                self._add("negative_prompt", "", gr.Textbox, label="Negative prompt", placeholder=hint, max_length=1000)
        elif capabilities.classes:
            names = capabilities.class_names or [f"class {i}" for i in range(capabilities.classes)]
            choices = [(ALL_CLASSES, ALL_CLASSES), *((str(name), str(i)) for i, name in enumerate(names))]
            self._add("label", ALL_CLASSES, gr.Dropdown, label="Class", choices=choices)

    def _add_settings(self, stage: str, defaults: Mapping[str, Any]) -> None:
        known = [flag for flag in KINDS if flag in defaults]
        main = [flag for flag in known if KINDS[flag].is_main and not stage]
        for flag in main:
            self._add_setting(flag, stage, defaults[flag])
        more = [flag for flag in known if flag not in main]
        checkpoints = [str(step) for step in self.capabilities.checkpoints] if not stage else []
        if not more and len(checkpoints) < 2:
            return
        with gr.Accordion(f"Stage: {stage}" if stage else "More settings", open=False):
            for flag in more:
                self._add_setting(flag, stage, defaults[flag])
            if len(checkpoints) > 1:
                label = "Checkpoint (training step)"
                self._add("checkpoint", self._last_checkpoint, gr.Dropdown, label=label, choices=checkpoints)

    def _add_setting(self, flag: str, stage: str, default: Any) -> None:
        choices = self.capabilities.choices.get(flag, ())
        limits = self.capabilities.number if flag == "number" else None
        self.settings.append(make_setting(flag, stage, default, choices, limits))


def _integer(flag: str, text: str) -> int:
    try:
        return int(number(text, int))
    except ValueError as error:
        raise UserError(f"--{flag}={text}: must be a whole number") from error


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if not isinstance(value, int | float) or value != int(value) or not low <= value <= high:
        raise UserError(f"{name}={value}: must be a whole number from {low} to {high:,}")
    return int(value)
