"""The tab Compare: two runs or two checkpoints, sampled from the same seeds, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from diffjax.demo import html
from diffjax.demo.engine import Result
from diffjax.demo.form import Form
from diffjax.demo.generate import Generate
from diffjax.demo.output import add_images, failure, starting, summary
from diffjax.demo.widgets import AT_ONCE, DEVICE, Page, Progress, run_job

_LAST = "last"
# Flags of the first run that the second takes over.
_CONDITION = ("num", "seed", "prompt", "negative_prompt", "label")


class Compare:
    """The tab. Each run samples with its own settings of Generate."""

    def __init__(self, page: Page, generate: Generate):
        self._page, self._generate = page, generate
        names = list(generate.forms)
        second = names[1] if len(names) > 1 else names[0]
        gr.HTML(
            "Both runs take the condition, number and seed from the form of the first run in Generate, and the "
            "settings from their own.",
            elem_classes="about",
        )
        with gr.Row():
            sides = [self._side("First", names, names[0]), self._side("Second", names, second)]
        with gr.Row():
            button = gr.Button("Compare", variant="primary", min_width=120)
            stop = gr.Button("Stop", min_width=80)
        status = gr.HTML(html.status(""), elem_classes="status_line")
        images = gr.HTML(html.placeholder("Images of the same seeds appear here side by side."))
        command = gr.HTML("")
        stop.click(page.stop, outputs=None, **AT_ONCE)
        start = button.click(page.prepare, outputs=status, trigger_mode="once", **AT_ONCE)
        inputs = [*sides[0], *sides[1], *generate.all_components]
        start.then(self._compare, inputs, [status, images, command], **DEVICE)

    def _side(self, label: str, names: list[str], selected: str) -> list[gr.components.Component]:
        """Makes the controls of a run and of its checkpoint."""
        with gr.Column(min_width=280):
            run = gr.Dropdown(names, value=selected, label=f"{label} run")
            checkpoint = gr.Dropdown(self._checkpoints(selected), value=_LAST, label=f"{label} checkpoint (step)")
            update = lambda name: gr.update(choices=self._checkpoints(name), value=_LAST)  # noqa: E731
            run.change(update, run, checkpoint, **AT_ONCE)
        return [run, checkpoint]

    def _checkpoints(self, name: str) -> list[str]:
        return [_LAST, *(str(step) for step in self._generate.forms[name].capabilities.checkpoints)]

    def _compare(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        session, generate = self._page.session(request), self._generate
        try:
            sides = (values[0], values[1]), (values[2], values[3])
            all_flags = [generate.flags(name, values[4:], needs_prompt=i == 0) for i, (name, _) in enumerate(sides)]
            forms = [generate.forms[name] for name, _ in sides]
            all_flags[1] = with_condition(all_flags[1], all_flags[0], forms)
            results: list[Result] = []
            for (name, checkpoint), flags in zip(sides, all_flags, strict=True):
                flags.pop("best_of", None)
                if checkpoint != _LAST:
                    flags["checkpoint"] = checkpoint
                work = lambda report, name=name, flags=flags: self._page.engine.sample(  # noqa: E731
                    name, flags, on_step=report, stop=session.stop, previews=0
                )
                for state in run_job(work, session.stop):
                    if isinstance(state, Progress):
                        yield _running(state, len(results)), gr.skip(), gr.skip()
                    else:
                        results.append(state)
            names = [name if step == _LAST else f"{name} at {step}" for name, step in sides]
            groups = {
                f"{i}. {label}": add_images(session, generate.forms[name].capabilities, flags, result)
                for i, (label, (name, _), flags, result) in enumerate(
                    zip(names, sides, all_flags, results, strict=True), 1
                )
            }
            shown = html.side_by_side(groups)
            notes = html.notes(note for result in results for note in result.notes)
            status = "; ".join(f"{name}: {summary(result)}" for name, result in zip(names, results, strict=True))
            commands = "\n".join(result.command for result in results)
            yield html.status(status), shown + notes, html.command(commands, "Commands that sample the same images")
        except Exception as error:
            yield failure(error), gr.skip(), gr.skip()


def with_condition(flags: Mapping[str, str], first: Mapping[str, str], forms: Sequence[Form]) -> dict[str, str]:
    """Returns flags of the second run with the condition, number and seed of the first, where both have the control.

    Args:
      flags: flags of the second run.
      first: flags of the first run.
      forms: forms of both runs.
    """
    shared = set(_CONDITION).intersection(*(form.field_names for form in forms))
    others = {name: text for name, text in flags.items() if name not in shared}
    return others | {name: text for name, text in first.items() if name in shared}


def _running(state: Progress, finished: int) -> str:
    if state.report is None:
        return starting(state)
    step = state.report
    message = f"run {finished + 1} of 2: step {step.index} of {step.total} · {state.seconds:.0f} s"
    return html.status(message, (finished + step.fraction) / 2)
