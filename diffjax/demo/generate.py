"""The tab Generate: samples images of a prompt or a class."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from diffjax.demo import html, output
from diffjax.demo.form import Form
from diffjax.demo.output import Output
from diffjax.demo.widgets import AT_ONCE, DEVICE, Page, error_line
from diffjax.errors import unknown


class Generate:
    """The tab, with a form per run, of which that of the selected run is visible.

    Attributes:
      columns: parts of the tab that belong to a run, with its name.
      forms: by name of the run. Other tabs sample with their settings.
    """

    def __init__(self, page: Page):
        self._page = page
        self.forms: dict[str, Form] = {}
        self.columns: list[tuple[str, gr.Column]] = []
        buttons = {}
        with gr.Row(elem_classes="work"):
            with gr.Column(elem_classes="form"):
                for name in page.engine.names:
                    with self._column(name):
                        self.forms[name] = Form(name, page.engine.capabilities(name))
                        with gr.Row():
                            buttons[name] = gr.Button("Generate", variant="primary", min_width=120)
                            stop = gr.Button("Stop", min_width=80)
                    stop.click(page.stop, outputs=None, **AT_ONCE)
            with gr.Column(elem_classes="output"):
                self.output = Output("Images appear here. The first ones take longer, because a program is compiled.")
            with gr.Column(elem_classes="settings"):
                for name, form in self.forms.items():
                    with self._column(name):
                        form.add_settings()
        for name, form in self.forms.items():
            inputs, outputs = form.components, [form.seed, *self.output.components]
            triggers = [buttons[name].click, *(c.submit for c in form.components if isinstance(c, gr.Textbox))]
            start = gr.on(triggers, page.prepare, outputs=self.output.status, trigger_mode="once", **AT_ONCE)
            start.then(self._sample(name), inputs, outputs, **DEVICE)

    @property
    def all_components(self) -> list[gr.components.Component]:
        """The controls of all forms, in the order of `restored`."""
        return [component for form in self.forms.values() for component in form.components]

    def restored(self, name: str, flags: Mapping[str, str]) -> list[Any]:
        """Returns updates of `all_components` that set the form of a run to flags and leave the others."""
        updates = []
        for other, form in self.forms.items():
            values = form.values(flags) if other == name else [gr.skip()] * len(form.components)
            updates += values
        return updates

    def flags(self, name: str, values: Sequence[Any], *, needs_prompt: bool = True) -> dict[str, str]:
        """Returns the flags of a run's form, from the values of `all_components`.

        Raises:
          UserError: an unknown run, or an invalid value.
        """
        start = 0
        for other, form in self.forms.items():
            if other == name:
                return form.flags(values[start : start + len(form.components)], needs_prompt=needs_prompt)
            start += len(form.components)
        raise unknown("run", name, self.forms)

    def _column(self, name: str) -> gr.Column:
        """Makes a part of the tab that is visible while a run is selected."""
        column = gr.Column(visible=name == self._page.engine.names[0])
        self.columns.append((name, column))
        return column

    def _sample(self, name: str) -> Any:
        form = self.forms[name]

        def run(request: gr.Request, *values: Any) -> Iterator[Any]:
            try:
                flags = form.flags(values)
            except Exception as error:
                yield gr.skip(), html.error(error_line(error)), gr.skip(), gr.skip()
                return
            seed = int(flags["seed"])
            for update in output.sample(self._page, self._page.session(request), name, flags):
                yield seed, *update

        return run
