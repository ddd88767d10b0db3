"""The tab Edit: images as input, and interpolations."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from diffjax.data import image_files
from diffjax.demo import html, output
from diffjax.demo.capabilities import Capabilities
from diffjax.demo.form import Form
from diffjax.demo.generate import Generate
from diffjax.demo.html import Figure
from diffjax.demo.output import Output
from diffjax.demo.session import MAX_BYTES, Session, check_upload
from diffjax.demo.widgets import AT_ONCE, DEVICE, EVENT, Page, error_line
from diffjax.errors import UserError

PAINTED = "painted below"
_REGIONS = (PAINTED, "left", "right", "top", "bottom", "center")
_EXAMPLE = re.compile(r"(train|validation|test):[0-9]{1,9}")
_EDITOR_SIZE = 320  # pixels of the image on which a mask is painted

# Name, hint and controls of each edit of `engine.EDITS`.
EDITS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "image_to_image": (
        "Image to image",
        "Adds noise to the image for a part of the process, then denoises it.",
        ("image", "example", "strength"),
    ),
    "inpaint": (
        "Inpainting",
        "Samples a part of the image anew: paint over it, or name it.",
        ("image", "example", "region", "mask", "resample_steps"),
    ),
    "variations": ("Variations", "Samples images with the content of the image.", ("image", "example", "invert")),
    "interpolate_seeds": (
        "Interpolation of seeds",
        "Each row leads from the latent of one seed to that of the next.",
        ("interpolate",),
    ),
    "interpolate_images": (
        "Interpolation of images",
        "A row that leads from one image to another.",
        ("image", "example", "image_b", "example_b", "interpolate"),
    ),
    "text_diff": (
        "Text difference",
        "Moves the image along the difference from one caption to another.",
        ("image", "example", "base_prompt", "interpolate"),
    ),
    "complete": (
        "Completion",
        "Keeps the top of the image and samples the rest.",
        ("image", "example", "keep_fraction"),
    ),
}
_ROWS = ("interpolate_seeds", "interpolate_images", "text_diff")
_WITHOUT_PROMPT = ("variations", "interpolate_images")


class EditForm:
    """Controls of the edits of one run, made in the current gradio context."""

    def __init__(self, capabilities: Capabilities):
        self.capabilities = capabilities
        self.edits = [name for name in EDITS if name in capabilities.edits]
        self.named: dict[str, gr.components.Component] = {}
        labels = [(EDITS[name][0], name) for name in self.edits]
        self.kind = gr.Radio(labels, value=self.edits[0], label="Edit", info=EDITS[self.edits[0]][1])
        first = EDITS[self.edits[0]][2]
        image: Mapping[str, Any] = {"file_types": ["image"], "type": "filepath", "height": 130}
        example = {"placeholder": "test:7", "max_length": 40, "info": "split and number, in the place of a file"}
        limit = f"at most {MAX_BYTES // 2**20} MB"
        makers = {
            "image": lambda **o: gr.File(label=f"Image ({limit})", elem_classes="edit_image", **image, **o),
            "example": lambda **o: gr.Textbox(label="Or an image of the data set", **example, **o),
            "image_b": lambda **o: gr.File(label=f"Second image ({limit})", elem_classes="edit_image_b", **image, **o),
            "example_b": lambda **o: gr.Textbox(label="Or a second image of the data set", **example, **o),
            "region": lambda **o: gr.Dropdown(_REGIONS, value=PAINTED, label="Part to sample", **o),
            "mask": lambda **o: gr.ImageEditor(
                label="Mask",
                sources=(),
                type="numpy",
                transforms=(),
                layers=False,
                canvas_size=(_EDITOR_SIZE, _EDITOR_SIZE),
                height=_EDITOR_SIZE + 100,
                brush=gr.Brush(default_size=48, colors=["#ff3d7f"], color_mode="fixed"),
                buttons=[],
                elem_classes="pixelated",
                **o,
            ),
            "strength": lambda **o: gr.Slider(
                0.05, 1, 0.5, step=0.05, label="Strength", info="fraction of the process to noise for", **o
            ),
            "resample_steps": lambda **o: gr.Slider(
                1, 20, 1, step=1, label="Repetitions of each step", info="more: the parts fit better (RePaint)", **o
            ),
            "invert": lambda **o: gr.Checkbox(label="Start from the image's own latent", **o),
            "base_prompt": lambda **o: gr.Textbox(label="Caption of the image", max_length=1000, **o),
            "interpolate": lambda **o: gr.Slider(2, 16, 8, step=1, label="Images per row", **o),
            "keep_fraction": lambda **o: gr.Slider(0.1, 0.9, 0.5, step=0.05, label="Part to keep, from the top", **o),
        }
        used = {name for edit in self.edits for name in EDITS[edit][2]}
        if "text_diff" not in capabilities.edits:
            used.discard("invert")  # only unCLIP has an inversion
        self._previews: dict[str, gr.HTML] = {}
        for name, make in makers.items():
            if name in used:
                self.named[name] = make(visible=name in first)
                if name in ("image", "image_b"):
                    self._previews[name] = gr.HTML("", visible=name in first)
        self.condition = Form(capabilities.name, capabilities)
        shown = [*self.named.values(), *self._previews.values()]
        self.kind.change(self._select, self.kind, [self.kind, *shown], **AT_ONCE)
        for name, preview in self._previews.items():
            self.named[name].change(self._preview, self.named[name], preview, **EVENT)
        if "mask" in self.named:
            self.named["image"].change(self._background, self.named["image"], self.named["mask"], **EVENT)
            self.named["region"].change(self._show_mask, self.named["region"], self.named["mask"], **AT_ONCE)

    @property
    def components(self) -> list[gr.components.Component]:
        return [self.kind, *self.named.values(), *self.condition.components]

    def flags(self, session: Session, values: Sequence[Any]) -> tuple[str, dict[str, str]]:
        """Returns the edit and its flags; writes the images of the page to the session.

        Raises:
          UserError: a value is missing or invalid.
        """
        kind, count = values[0], 1 + len(self.named)
        if kind not in self.edits:
            raise UserError(f"edit={kind}: is not supported by this run; choose one of {', '.join(self.edits)}")
        named = dict(zip(self.named, values[1:count], strict=True))
        flags = self.condition.flags(values[count:], needs_prompt=kind not in _WITHOUT_PROMPT)
        return kind, flags | edit_flags(kind, named, session)

    def _select(self, kind: str) -> list[Any]:
        """Shows the controls of an edit."""
        names = [*self.named, *self._previews]
        return [gr.update(info=EDITS[kind][1]), *(gr.update(visible=name in EDITS[kind][2]) for name in names)]

    def _show_mask(self, region: str) -> Any:
        return gr.update(visible=region == PAINTED)

    def _preview(self, path: str | None) -> str:
        """Returns an uploaded image as the run sees it, or a line on what is wrong with it."""
        if path is None:
            return ""
        try:
            image = self._load(path)
        except Exception as error:
            return html.error(error_line(error).replace(path, Path(path).name))
        side = self.capabilities.image_size
        figure = Figure(html.inline(image), "the uploaded image", f"as the run sees it, {side} x {side}")
        return html.images([figure], "The uploaded image", size="8rem")

    def _background(self, path: str | None) -> Any:
        """Returns an uploaded image for the editor of the mask; None if it is not an image."""
        try:
            image = None if path is None else self._load(path)
        except Exception:  # `_preview` shows it
            return None
        if image is None:
            return None
        pixels = Image.fromarray(image.squeeze()).convert("RGB")
        return pixels.resize((_EDITOR_SIZE, _EDITOR_SIZE), Image.Resampling.NEAREST)

    def _load(self, path: str) -> np.ndarray:
        check_upload(Path(path))
        channels = 1 if self.capabilities.channels == 1 else 3
        return image_files.load_image(path, self.capabilities.image_size, channels)


def edit_flags(kind: str, values: Mapping[str, Any], session: Session) -> dict[str, str]:
    """Returns the flags of an edit; writes its images and its mask to the session.

    Args:
      kind: name in EDITS.
      values: values of the controls by name.

    Raises:
      UserError: a value is missing or invalid.
    """
    controls = EDITS[kind][2]
    flags = {}
    if "image" in controls:
        images = [_image(values.get("image"), values.get("example"), "image", session)]
        if "image_b" in controls:
            images.append(_image(values.get("image_b"), values.get("example_b"), "second image", session))
        flags["initial_image" if kind == "complete" else "image"] = ",".join(images)
    if "region" in controls:
        region = values["region"]
        if region not in _REGIONS:
            raise UserError(f"region={region}: must be one of {', '.join(_REGIONS)}")
        flags["mask"] = _painted_mask(values["mask"], session) if region == PAINTED else region
        if values["resample_steps"] > 1:
            flags["resample_steps"] = str(int(values["resample_steps"]))
    for name in ("strength", "keep_fraction"):
        if name in controls:
            flags[name] = f"{values[name]:g}"
    if "interpolate" in controls:
        flags["interpolate"] = str(int(values["interpolate"]))
    if "base_prompt" in controls:
        if not (values["base_prompt"] or "").strip():
            raise UserError("caption of the image: is empty; write a caption")
        flags["base_prompt"] = " ".join(values["base_prompt"].split())
    if values.get("invert") and "invert" in controls:
        flags["invert"] = "true"
    if kind in ("interpolate_images", "text_diff"):
        flags["num"] = "1"
    return flags


def _image(path: str | None, example: str | None, name: str, session: Session) -> str:
    """Returns an image as the value of a flag: a file of the session, or an image of the data set."""
    example = (example or "").strip()
    if example:
        if not _EXAMPLE.fullmatch(example):
            raise UserError(f"{name}={example}: must be a split and a number, such as test:7")
        return example
    if path is None:
        raise UserError(f"{name}: is missing; upload a file, or name an image of the data set, such as test:7")
    return str(session.keep_upload(path))


def _painted_mask(editor: Mapping[str, Any] | None, session: Session) -> str:
    """Writes what was painted in the editor as a mask, white where the image is sampled; returns its path."""
    layers = [layer for layer in (editor or {}).get("layers") or [] if layer is not None]
    painted = [np.asarray(layer)[..., 3] > 0 for layer in layers]
    if not any(mask.any() for mask in painted):
        raise UserError("mask: nothing is painted; paint over the part to sample, or choose a part by its name")
    folder = session.new_file("", "mask")
    folder.mkdir()
    path = folder / "mask.png"
    Image.fromarray(np.logical_or.reduce(painted).astype(np.uint8) * 255).save(path)
    return str(path)


class Edit:
    """The tab, with a form per run that supports edits.

    Attributes:
      images: controls of the image to edit, by name of the run.
    """

    def __init__(self, page: Page, generate: Generate):
        self._page, self._generate = page, generate
        self.columns: list[tuple[str, gr.Column]] = []
        self._forms: dict[str, EditForm] = {}
        buttons = {}
        gr.HTML("The sampler, the steps and other settings are those of Generate.", elem_classes="about")
        with gr.Row(elem_classes="work"):
            with gr.Column(elem_classes="form"):
                for i, (name, form) in enumerate(generate.forms.items()):
                    with gr.Column(visible=i == 0) as column:
                        self.columns.append((name, column))
                        if not form.capabilities.edits:
                            gr.HTML(html.placeholder("This run supports no edits."))
                            continue
                        self._forms[name] = EditForm(form.capabilities)
                        with gr.Row():
                            buttons[name] = gr.Button("Edit", variant="primary", min_width=120)
                            stop = gr.Button("Stop", min_width=80)
                        stop.click(page.stop, outputs=None, **AT_ONCE)
            with gr.Column(elem_classes="output"):
                self.output = Output("Edited images appear here.")
                self.files = gr.HTML("")
        self.images = {name: form.named["image"] for name, form in self._forms.items() if "image" in form.named}
        for name, form in self._forms.items():
            inputs = [*form.components, *generate.forms[name].components]
            start = buttons[name].click(page.prepare, outputs=self.output.status, trigger_mode="once", **AT_ONCE)
            start.then(self._sample(name), inputs, [*self.output.components, self.files], **DEVICE)

    def _sample(self, name: str) -> Any:
        form = self._forms[name]

        def run(request: gr.Request, *values: Any) -> Iterator[Any]:
            session = self._page.session(request)
            try:
                count = len(form.components)
                kind, flags = form.flags(session, values[:count])
                flags = self._generate.forms[name].setting_flags(values[count:]) | flags
            except Exception as error:
                yield html.error(error_line(error)), gr.skip(), gr.skip(), gr.skip()
                return
            for update in output.sample(self._page, session, name, flags, "rows" if kind in _ROWS else ""):
                yield *update, file_links(session, flags)

        return run


def file_links(session: Session, flags: Mapping[str, str]) -> str:
    """Returns links to save the files that a command names, such as a painted mask."""
    values = (value for name in ("image", "initial_image", "mask") for value in flags.get(name, "").split(","))
    paths = [Path(value) for value in values if value.startswith(f"{session.folder}/")]
    links = ", ".join(
        f'<a href="{html.address(p)}" download="{html.text(p.name)}">{html.text(p.name)}</a>' for p in paths
    )
    return f'<p class="note">Files of the command: {links}</p>' if links else ""
