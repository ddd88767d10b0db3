"""The tab Explore: a table of images over two settings, and the steps of one trajectory."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np

from diffjax.demo import html
from diffjax.demo.engine import PlotResult, Trajectory
from diffjax.demo.form import Form
from diffjax.demo.generate import Generate
from diffjax.demo.html import Figure
from diffjax.demo.output import failure, starting, summary
from diffjax.demo.session import Session
from diffjax.demo.widgets import AT_ONCE, DEVICE, KINDS, Page, Progress, Setting, format_value, run_job
from diffjax.errors import UserError
from diffjax.inference import image_grids
from diffjax.parsing import texts

Axis = tuple[str, list[str]]  # flag, values
MAX_CELLS = 64  # images of a table
MAX_FRAMES = 100  # steps of a trajectory that are sent to the page
MAX_FRAME_PIXELS = 2**22  # of all images of these steps together
_VALUES = {"steps": "5, 10, 20, 50", "guidance": "1, 2, 4", "eta": "0, 0.5, 1", "temperature": "0.5, 0.8, 1"}
_NONE = "none"
_ARRAYS = {"x_t": "x_t", "x₀": "x_0", "noise": "eps", "forward": "forward"}  # arrays of a Trajectory by panel
_PANELS = {
    "x_t": "the noised image",
    "x₀": "the image that the model predicts from it",
    "noise": "the noise that the model predicts in it",
    "forward": "the final image, noised to the same level",
}


class Explore:
    """The tab. Both views sample with the settings of Generate, except for those that they vary."""

    def __init__(self, page: Page, generate: Generate):
        self._page, self._generate = page, generate
        self.columns: list[tuple[str, gr.Column]] = []
        axes, buttons = {}, {}
        gr.HTML("The condition, the seed and the other settings are those of Generate.", elem_classes="about")
        with gr.Tabs():
            with gr.Tab("Two settings", id="plot"):
                for i, (name, form) in enumerate(generate.forms.items()):
                    with gr.Column(visible=i == 0) as column:
                        self.columns.append((name, column))
                        axes[name] = self._axes(form)
                        with gr.Row():
                            buttons[name] = gr.Button("Sample the table", variant="primary", min_width=160)
                            stop = gr.Button("Stop", min_width=80)
                    stop.click(page.stop, outputs=None, **AT_ONCE)
                plot_status = gr.HTML(html.status(""), elem_classes="status_line")
                plot = gr.HTML(html.placeholder("One noise, sampled with every combination of the values."))
                command = gr.HTML("")
            with gr.Tab("Trajectory", id="trajectory"):
                with gr.Row():
                    trace = gr.Button("Sample one trajectory", variant="primary", min_width=160)
                status = gr.HTML(html.status(""), elem_classes="status_line")
                trajectory = gr.HTML(html.placeholder("The steps from noise to an image: x_t, its x₀, and its noise."))
        for name, form in generate.forms.items():
            outputs = [plot_status, plot, command]
            start = buttons[name].click(page.prepare, outputs=plot_status, trigger_mode="once", **AT_ONCE)
            start.then(self._plot(name), [*axes[name], *form.components], outputs, **DEVICE)
        start = trace.click(page.prepare, outputs=status, trigger_mode="once", **AT_ONCE)
        start.then(self._trace, [page.run, *generate.all_components], [status, trajectory], **DEVICE)

    def _axes(self, form: Form) -> list[gr.components.Component]:
        """Makes the controls of the settings of columns and rows and of their values."""
        settings = {setting_name(setting): setting for setting in form.settings}
        names = list(settings)
        components: list[gr.components.Component] = []
        choices = {"Columns": names, "Rows": [_NONE, *names]}
        first = {"Columns": _first(names, ("Steps", "Temperature")), "Rows": _first(names, ("Guidance", "Eta"))}
        with gr.Row():
            for axis, options in choices.items():
                with gr.Column(min_width=280):
                    selected = first[axis] or options[0] if options else None
                    setting = gr.Dropdown(options, value=selected, label=f"{axis}: setting")
                    text = suggested_values(settings[selected]) if selected in settings else ""
                    values = gr.Textbox(text, label=f"{axis}: values, separated by commas", max_length=500)
                    suggest = lambda selected: suggested_values(settings[selected]) if selected in settings else ""  # noqa: E731
                    setting.change(suggest, setting, values, **AT_ONCE)
                    components += [setting, values]
        return components

    def _plot(self, name: str) -> Any:
        form = self._generate.forms[name]

        def run(request: gr.Request, *values: Any) -> Iterator[Any]:
            session = self._page.session(request)
            try:
                x, y = read_axes(form.settings, values[:4])
                flags = form.flags(values[4:])
                axis_flags = [axis[0] for axis in (x, y) if axis]
                flags = {flag: text for flag, text in flags.items() if flag not in (*axis_flags, "best_of")} | {
                    "num": "1"
                }

                def work(report: Any) -> PlotResult:
                    on_cell = lambda done, total: report((done, total))  # noqa: E731
                    return self._page.engine.plot(name, flags, x, y, on_cell=on_cell, stop=session.stop)

                for state in run_job(work, session.stop):
                    if isinstance(state, Progress):
                        yield _running(state), gr.skip(), gr.skip()
                    else:
                        yield _table(session, state)
            except Exception as error:
                yield failure(error), gr.skip(), gr.skip()

        return run

    def _trace(self, request: gr.Request, name: str, *values: Any) -> Iterator[Any]:
        session = self._page.session(request)
        try:
            flags = self._generate.flags(name, values) | {"num": "1"}
            flags.pop("best_of", None)
            work = lambda report: self._page.engine.trajectory(name, flags, stop=session.stop)  # noqa: E731
            for state in run_job(work, session.stop):
                if isinstance(state, Progress):
                    yield starting(state), gr.skip()
                else:
                    yield (
                        html.status(f"{len(state.times)} steps{f' of {state.stage}' * bool(state.stage)}"),
                        frames(state),
                    )
        except Exception as error:
            yield failure(error), gr.skip()


def setting_name(setting: Setting) -> str:
    """Returns the name of a setting in the lists of rows and columns."""
    label = KINDS[setting.flag].label
    return f"{label} of {setting.stage}" if setting.stage else label


def suggested_values(setting: Setting) -> str:
    """Returns values to start with, separated by commas."""
    if isinstance(setting.component, gr.Dropdown):
        names = [name for _, name in setting.component.choices]
        return ", ".join(map(str, names[:4]))
    if setting.flag in _VALUES:
        return _VALUES[setting.flag]
    kind = KINDS[setting.flag]
    values = [kind.low, (kind.low + kind.high) / 2, kind.high]
    return ", ".join(dict.fromkeys(format_value(int(value) if kind.step == 1 else float(value)) for value in values))


def read_axes(settings: Sequence[Setting], values: Sequence[Any]) -> tuple[Axis, Axis | None]:
    """Returns the flags and values of the columns and of the rows; None for one row.

    Args:
      settings: those of the run.
      values: setting of the columns, their values, setting of the rows, their values.

    Raises:
      UserError: a setting without values, the same setting twice, or too many images.
    """
    by_name = {setting_name(setting): setting for setting in settings}
    axes = []
    for axis, name, text in (("columns", *values[:2]), ("rows", *values[2:4])):
        if name not in by_name:
            if axis == "columns":
                raise UserError("columns: have no setting; choose one")
            continue
        setting, items = by_name[name], texts(text or "")
        if not items:
            raise UserError(f"{axis}: have no values; write some, separated by commas")
        axes.append((setting.flag, [f"{setting.stage}:{item}" if setting.stage else item for item in items]))
    if len({flag for flag, _ in axes}) < len(axes):
        raise UserError(f"rows: vary --{axes[0][0]}, as the columns do; choose another setting")
    count = math.prod(len(items) for _, items in axes)
    if count > MAX_CELLS:
        raise UserError(f"values: make {count} images; must be at most {MAX_CELLS}")
    return axes[0], axes[1] if len(axes) > 1 else None


def frames(trajectory: Trajectory) -> str:
    """Returns the frames of the first image of a trajectory, with its levels; of many steps, evenly spaced ones."""
    count = len(trajectory.times)
    pixels = len(_ARRAYS) * math.prod(trajectory.x_t.shape[2:4])
    num_frames = max(2, min(count, MAX_FRAMES, MAX_FRAME_PIXELS // pixels))
    steps = sorted({round(i) for i in np.linspace(0, count - 1, num_frames)})
    shown = [{panel: html.inline(getattr(trajectory, array)[i, 0]) for panel, array in _ARRAYS.items()} for i in steps]
    numbers = [
        {
            "t": float(trajectory.times[i]),
            "α": float(trajectory.alphas[i]),
            "σ": float(trajectory.sigmas[i]),
            "SNR = α²/σ²": float(trajectory.alphas[i] ** 2 / max(trajectory.sigmas[i] ** 2, 1e-12)),
        }
        for i in steps
    ]
    return html.trajectory(shown, _PANELS, numbers)


def _running(state: Progress) -> str:
    if state.report is None:
        return starting(state)
    done, total = state.report
    return html.status(f"image {done} of {total} · {state.seconds:.0f} s", done / total)


def _table(session: Session, result: PlotResult) -> tuple[str, str, Any]:
    """Returns the updates that show a table: status, images, command."""
    (x_flag, x_values), y = result.x, result.y
    y_flag, y_values = y or ("", [""])
    items = []
    for i, y_value in enumerate(y_values):
        for j, x_value in enumerate(x_values):
            alt = ", ".join(filter(None, [f"{x_flag} {x_value}", f"{y_flag} {y_value}".strip()]))
            path = session.new_file(".png", alt)
            image_grids.save(path, result.images[i, j, 0])
            items.append(Figure(html.address(path), alt, "", f"{alt}\n{result.commands[i][j]}"))
    corner = f"{y_flag} ↓  {x_flag} →" if y else f"{x_flag} →"
    table = html.table(
        items, x_values, y_values, corner, label=f"Images by {x_flag} and {y_flag}".removesuffix(" and ")
    )
    status = html.status(summary(result, len(items)))
    command = html.command(result.commands[0][0], "Command of the first image; an enlarged image shows its own")
    return status, table + html.notes(result.notes), command


def _first(names: Sequence[str], preferred: Sequence[str]) -> str:
    """Returns the first preferred name, also of a stage; else ""."""
    return next((name for word in preferred for name in names if name.split(" of ")[0] == word), "")
