"""Shows a job in a tab: its progress, its images and the command that samples them again."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr

from diffjax.demo import html
from diffjax.demo.capabilities import Capabilities
from diffjax.demo.engine import PlotResult, Result, Step, Stopped
from diffjax.demo.html import Figure
from diffjax.demo.session import Entry, Session
from diffjax.demo.widgets import Page, Progress, error_line, run_job
from diffjax.inference import image_grids

Update = tuple[Any, Any, Any]  # status, images, command


class Output:
    """Status, images and command of a tab, made in the current gradio context."""

    def __init__(self, hint: str):
        """`hint` is shown until there are images."""
        self.status = gr.HTML(html.status(""), elem_classes="status_line")
        self.images = gr.HTML(html.placeholder(hint))
        self.command = gr.HTML("")

    @property
    def components(self) -> list[gr.components.Component]:
        return [self.status, self.images, self.command]


def sample(page: Page, session: Session, name: str, flags: Mapping[str, str], layout: str = "") -> Iterator[Update]:
    """Samples with flags of `launch.py sample`; yields updates of an Output. An error is a line of the status.

    `layout="rows"` keeps the rows of the grid, such as those of an interpolation.
    """

    def work(report: Callable[[Any], None]) -> Result:
        return page.engine.sample(name, flags, on_step=report, stop=session.stop)

    try:
        for state in run_job(work, session.stop):
            if isinstance(state, Progress):
                yield running(state)
            else:
                yield finished(session, page.engine.capabilities(name), flags, state, layout)
    except Exception as error:
        yield failed(error)


def running(state: Progress) -> Update:
    """Returns the update for a running job."""
    step: Step | None = state.report
    if step is None:
        return starting(state), gr.skip(), gr.skip()
    stage = f"{step.stage}: " * bool(step.stage)
    previews = gr.skip()
    if len(step.images):
        figures = [Figure(html.inline(image), f"preview {i + 1}") for i, image in enumerate(step.images)]
        previews = html.images(figures, "Previews of the images")
    message = f"{stage}step {step.index} of {step.total} · {state.seconds:.0f} s"
    return html.status(message, step.fraction), previews, gr.skip()


def starting(state: Progress) -> str:
    """Returns the status of a job before its first report."""
    reason = "" if state.seconds < 2 else "; compiling, which later images of these settings do not need"
    return html.status(f"starting{reason} … {state.seconds:.0f} s", 0.0)


def failed(error: Exception) -> Update:
    """Returns the update for an error; the images before it stay."""
    return failure(error), gr.skip(), gr.skip()


def failure(error: Exception) -> str:
    """Returns the status of a job that was stopped or failed."""
    return html.status("stopped") if isinstance(error, Stopped) else html.error(error_line(error))


def finished(
    session: Session, capabilities: Capabilities, flags: Mapping[str, str], result: Result, layout: str = ""
) -> Update:
    """Adds the images of a result to the history, and returns the update that shows them."""
    name, figures = capabilities.name, add_images(session, capabilities, flags, result)
    grid = session.new_file(".png", f"{name}_grid")
    result.save(grid)
    columns = result.grid.geometry.columns if layout == "rows" else 0
    shown = html.images(figures, f"{len(figures)} images of {name}", columns=columns)
    link = f'<a href="{html.address(grid)}" download="{html.text(grid.name)}">Save all as a grid</a>'
    command = html.command(session.without_folder(result.command))
    return html.status(summary(result)), shown + html.notes(result.notes) + f'<p class="note">{link}</p>', command


def add_images(session: Session, capabilities: Capabilities, flags: Mapping[str, str], result: Result) -> list[Figure]:
    """Writes each image of a result as a PNG with its settings, adds it to the history, and returns its figures."""
    names = class_names(capabilities, result)
    name, figures = capabilities.name, []
    for i in range(len(result.images)):
        condition = result.captions[i] or names[i]
        seed = f"seed {result.seeds[i]}"
        score = f"CLIP {result.scores[i]:.3f}" if result.scores is not None else ""
        path = session.new_file(".png", f"{name}_{condition}_{seed}")
        result.save(path, i)
        entry = session.add(
            path=path,
            run=name,
            caption=" · ".join(filter(None, [names[i], seed, score])),
            alt=", ".join(filter(None, [condition, seed])),
            flags=dict(flags),
            command=session.without_folder(result.command),
        )
        figures.append(entry_figure(entry))
    return figures


def class_names(capabilities: Capabilities, result: Result) -> list[str]:
    """Returns the class of each image; "" for runs without classes."""
    classes, names = capabilities.classes, capabilities.class_names
    return [image_grids.class_label(label, classes, names) if label >= 0 else "" for label in result.labels]


def entry_figure(entry: Entry) -> Figure:
    """Returns the figure of an image of the history."""
    details = f"{entry.alt}\nrun {entry.run}\n{entry.command}"
    return Figure(html.address(entry.path), entry.alt, entry.caption, details, entry.path.name, entry.number)


def summary(result: Result | PlotResult, count: int | None = None) -> str:
    """Returns a line on the number of images and the time."""
    count = len(result.images) if count is None else count
    programs = f"{result.compilations} program{'s' * (result.compilations != 1)}"
    compiled = f", with the compilation of {programs}" if result.compilations else ""
    return f"{count} image{'s' * (count != 1)} in {result.seconds:.1f} s{compiled}"
