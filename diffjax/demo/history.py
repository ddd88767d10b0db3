"""The tab History: every image of the session, and the settings of an image back into Generate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from diffjax.demo import html
from diffjax.demo.edit import Edit
from diffjax.demo.generate import Generate
from diffjax.demo.output import entry_figure
from diffjax.demo.session import check_upload
from diffjax.demo.widgets import AT_ONCE, EVENT, Page, error_line

_EMPTY = "Images that you sample appear here, the newest first."
_ON_CLICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button.action");
  if (button) trigger("select", { index: Number(button.dataset.number), value: button.dataset.action });
});"""


class History:
    """The tab."""

    def __init__(self, page: Page, generate: Generate, edit: Edit, tab: gr.Tab):
        self._page, self._generate, self._edit = page, generate, edit
        gr.HTML(
            "A saved PNG carries its settings: drop it here, and they are set in Generate; or sample it again with "
            "<code>launch.py sample --from=IMAGE.png</code>. The images are deleted when this page is closed.",
            elem_classes="about",
        )
        upload = gr.File(
            label="A saved PNG",
            file_types=[".png"],
            type="filepath",
            height=140,
            elem_classes="settings_file",
        )
        status = gr.HTML(html.status(""), elem_classes="status_line")
        images = gr.HTML(html.placeholder(_EMPTY), js_on_load=_ON_CLICK)
        outputs = [status, page.run, *generate.all_components]
        tab.select(self._show, outputs=images, **AT_ONCE)
        images.select(self._act, outputs=[*outputs, *edit.images.values()], **AT_ONCE)
        upload.upload(self._restore, upload, outputs, **EVENT)

    def _show(self, request: gr.Request) -> str:
        entries = self._page.session(request).history
        figures = [entry_figure(entry) for entry in reversed(entries)]
        return html.images(figures, "Images of the session", has_actions=True) or html.placeholder(_EMPTY)

    def _act(self, request: gr.Request, event: gr.SelectData) -> list[Any]:
        """Takes the settings of an image to Generate, or the image to Edit."""
        history, images = self._page.session(request).history, self._edit.images
        unchanged = [gr.skip()] * len(images)
        entry = next((entry for entry in history if entry.number == event.index), None)
        if entry is None:
            return [*self._failed(html.error(f"image {event.index}: is not in the history any more")), *unchanged]
        if event.value != "edit":
            return [*self._set(entry.run, entry.flags, f"image {entry.number}"), *unchanged]
        if entry.run not in images:
            return [*self._failed(html.error(f"image {entry.number}: its run supports no edits of images")), *unchanged]
        forms = [gr.skip()] * len(self._generate.all_components)
        updates = [str(entry.path) if name == entry.run else gr.skip() for name in images]
        return [html.status(f"Edit has image {entry.number}"), entry.run, *forms, *updates]

    def _restore(self, path: str | None) -> list[Any]:
        try:
            check_upload(Path(path or ""))
            name, flags = self._page.engine.restore(path or "")
        except Exception as error:
            message = error_line(error).replace(str(path), Path(path or "").name)
            return self._failed(html.error(message))
        return self._set(name, {flag: str(value) for flag, value in flags.items()}, Path(path or "").name)

    def _set(self, name: str, flags: Mapping[str, str], source: str) -> list[Any]:
        """Returns updates that select a run and set its form."""
        form = self._generate.forms[name]
        try:
            updates = self._generate.restored(name, flags)
        except Exception as error:
            return self._failed(html.error(error_line(error)))
        ignored = form.unknown_flags(flags)
        rest = f"; not in this form: {', '.join(f'--{flag}' for flag in ignored)}" if ignored else ""
        return [html.status(f"Generate has the settings of {source}{rest}"), name, *updates]

    def _failed(self, status: str) -> list[Any]:
        return [status, gr.skip(), *[gr.skip()] * len(self._generate.all_components)]
