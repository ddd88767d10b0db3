"""Controls of sampling settings, jobs with progress, and what the tabs share."""

import dataclasses
import math
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gradio as gr

from diffjax.demo import html
from diffjax.demo.engine import Engine
from diffjax.demo.session import Session, Sessions
from diffjax.errors import UserError, one_line
from diffjax.parsing import entries

MAX_IMAGES = 64  # of one click
MAX_SEED = 2**31 - 1
_INTERVAL = 0.2  # seconds between updates of the page during a job


class _Kind(NamedTuple):
    """The control of a flag: a slider from `low` to `high` in steps of `step`, or a list of choices if `step` is 0."""

    label: str
    info: str = ""
    low: float = 0.0
    high: float = 1.0
    step: float = 0.0
    is_main: bool = False  # visible without opening an accordion


# Controls by flag of `launch.py sample`, in the order of the page.
KINDS: Mapping[str, _Kind] = {
    "sampler": _Kind("Sampler", "a name, or one with options: edm(churn=40)", is_main=True),
    "steps": _Kind("Steps", "more steps: finer, slower", 1, 100, 1, is_main=True),
    "guidance": _Kind(
        "Guidance", "1: unguided; higher: closer to the condition, less varied", 0, 10, 0.1, is_main=True
    ),
    "prior": _Kind("Prior", "model that predicts the image embedding", is_main=True),
    "temperature": _Kind("Temperature", "below 1: likelier samples", 0.05, 2, 0.05, is_main=True),
    "truncation": _Kind("Truncation", "lower: more typical images", 0.1, 4, 0.1, is_main=True),
    "number": _Kind("Number", "value that the model is conditioned on", -10, 10, 0.1, is_main=True),
    "eta": _Kind("Eta", "noise added per step; 0: deterministic, 1: ancestral", 0, 1, 0.05),
    "grid": _Kind("Time grid"),
    "threshold": _Kind("Clipping of x₀"),
    "guidance_rescale": _Kind("Guidance rescale", "0: off", 0, 1, 0.05),
    "top_k": _Kind("Top k", "0: sample from all tokens", 0, 512, 1),
    "top_p": _Kind("Top p", "probability of the tokens to sample from", 0.05, 1, 0.05),
    "candidates": _Kind("Candidates", "embeddings sampled, of which one is kept", 1, 8, 1),
    "clip_scale": _Kind("CLIP guidance", "scale of the gradient of CLIP", 0, 10, 0.1),
    "augmentation": _Kind("Degradation level", "of the low-resolution image", 0, 1, 0.01),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A control of one flag, for one stage of a pipeline (""; the whole run)."""

    flag: str
    stage: str
    default: Any
    component: gr.components.Component

    def to_text(self, value: Any) -> str | None:
        """Returns the flag's text for the value of the control; None for the default, which needs no flag."""
        if value is None or value == "" or value == self.default:
            return None
        value_text = format_value(value)
        return f"{self.stage}:{value_text}" if self.stage else value_text


def format_value(value: Any) -> str:
    """Returns a setting as the text of its flag: numbers without rounding errors of a slider."""
    return f"{round(value, 6):g}" if isinstance(value, float) else str(value)


def make_setting(
    flag: str, stage: str, default: Any, choices: Sequence[str] = (), limits: tuple[float, float] | None = None
) -> Setting:
    """Makes the control of a flag.

    Args:
      default: value of the run's config; infinite: a limit that is off.
      choices: names to choose from; (): the flag is a number.
      limits: range of the number; None: that of KINDS.
    """
    kind = KINDS[flag]
    label = f"{kind.label} of {stage}" if stage else kind.label
    if choices:
        default = str(default)
        options = list(dict.fromkeys([*choices, default]))
        has_options = flag != "prior"  # such as edm(churn=40)
        component = gr.Dropdown(
            options, value=default, label=label, info=kind.info or None, allow_custom_value=has_options
        )
    elif isinstance(default, float) and math.isinf(default):  # a limit that is off
        default, info = "", "; ".join(filter(None, [kind.info, "empty: no limit"]))
        component = gr.Textbox(value="", label=label, info=info)
    elif isinstance(default, int | float):
        default = float(f"{default:.6g}") if isinstance(default, float) else default  # stored as float32
        low, high = limits or (min(kind.low, default), max(kind.high, default))
        step = (high - low) / 100 if limits else kind.step
        component = gr.Slider(low, high, value=default, step=step, label=label, info=kind.info or None)
    else:  # such as eta=hat
        component = gr.Textbox(value=str(default), label=label, info=kind.info or None)
    return Setting(flag, stage, default, component)


def flags_of(settings: Sequence[Setting], values: Sequence[Any]) -> dict[str, str]:
    """Returns the flags of the controls that differ from their defaults; stages of one flag are joined by commas."""
    flags: dict[str, list[str]] = {}
    for setting, value in zip(settings, values, strict=True):
        if (value_text := setting.to_text(value)) is not None:
            flags.setdefault(setting.flag, []).append(value_text)
    return {name: ",".join(texts) for name, texts in flags.items()}


def values_of(settings: Sequence[Setting], flags: Mapping[str, str]) -> list[Any]:
    """Returns the values of controls for flags, the inverse of `flags_of`; defaults where there is no flag."""
    values = []
    for setting in settings:
        value = setting.default
        for entry in entries(setting.flag, flags[setting.flag]) if setting.flag in flags else ():
            stage, _, value_text = entry.rpartition(":")
            if stage == setting.stage:
                value = _like(setting.default, value_text)
        values.append(value)
    return values


def _like(default: Any, value_text: str) -> Any:
    try:
        return type(default)(value_text) if isinstance(default, int | float) else value_text
    except ValueError:
        return default


class Progress(NamedTuple):
    """State of a running job.

    Attributes:
      report: last report of the work; None before the first.
      seconds: time since its start.
    """

    report: Any
    seconds: float


def run_job(work: Callable[[Callable[[Any], None]], Any], stop: threading.Event) -> Iterator[Any]:
    """Runs work in a thread; yields Progress a few times per second, then the result.

    Args:
      work: takes a function to report its progress with, and returns the result.
      stop: set if the caller does not wait for the result any more.

    Raises:
      Exception: the error of the work.
    """
    reports: queue.SimpleQueue = queue.SimpleQueue()

    def target() -> None:
        try:
            reports.put(("result", work(lambda report: reports.put(("report", report)))))
        except BaseException as error:
            reports.put(("error", error))

    thread = threading.Thread(target=target, daemon=True)
    since, last, is_done = time.monotonic(), None, False
    thread.start()
    try:
        while not is_done:
            deadline = time.monotonic() + _INTERVAL
            while (left := deadline - time.monotonic()) > 0 and not is_done:
                try:
                    kind, value = reports.get(timeout=left)
                except queue.Empty:
                    break
                if kind == "report":
                    last = value
                    continue
                is_done = True
                if kind == "error":
                    raise value
                yield value
            if not is_done:
                yield Progress(last, time.monotonic() - since)
    finally:
        if not is_done:
            stop.set()


def error_line(error: BaseException) -> str:
    """Returns the line of an error for the page. The traceback of a bug is printed on standard error."""
    if isinstance(error, UserError | OSError):
        return one_line(str(error))
    traceback.print_exception(error, file=sys.stderr)
    return one_line(f"internal error ({type(error).__name__}: {error}); the terminal of the demo has the traceback")


@dataclasses.dataclass(frozen=True)
class Page:
    """Objects that all tabs share.

    Attributes:
      engine: samples on behalf of the page.
      sessions: of the open tabs.
      run: control that selects the run.
    """

    engine: Engine
    sessions: Sessions
    run: gr.Dropdown

    def session(self, request: gr.Request) -> Session:
        return self.sessions[request.session_hash]

    def prepare(self, request: gr.Request) -> str:
        """Returns the status of a job that waits for the device; called before the job."""
        self.session(request).stop.clear()
        return html.status("waiting for the device …")

    def stop(self, request: gr.Request) -> None:
        """Stops the job of the browser tab."""
        self.session(request).stop.set()


# Options of every event. No function can be called but by the page, and gradio's own overlay of progress is hidden.
EVENT: Mapping[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# Events that sample: one at a time, others wait.
DEVICE: Mapping[str, Any] = {**EVENT, "concurrency_id": "device", "concurrency_limit": 1}
AT_ONCE: Mapping[str, Any] = {**EVENT, "queue": False}


def random_seed() -> int:
    return random.SystemRandom().randrange(1_000_000)
