"""HTML of what the page shows: images, progress, errors, tables of images and trajectories.

Text from users and runs is escaped. Images have descriptions for screen readers, and open enlarged by a click or Enter.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffjax.demo.capabilities import Capabilities

_SIZES = ((1, "20rem"), (4, "12rem"), (16, "6.5rem"))  # least width of an image by the largest number of images
_SMALLEST = "6rem"
SAME_IMAGES = "Command that samples the same images"  # label of a command

# Buttons under an image of the history: text, and description before its number.
ACTIONS = {"reuse": ("Reuse", "Use the settings of image"), "edit": ("Edit", "Edit image")}


class Figure(NamedTuple):
    """An image of the page.

    Attributes:
      source: address of the image.
      alt: description for screen readers.
      caption: line under the image.
      details: lines that the enlarged image shows, such as its command.
      download: name of the file to save; "": the image cannot be saved.
      number: number in the history; 0: not in the history.
    """

    source: str
    alt: str
    caption: str = ""
    details: str = ""
    download: str = ""
    number: int = 0


def address(path: Path) -> str:
    """Returns the address of a file of a session."""
    return f"gradio_api/file={path}"


def inline(image: UInt8[np.ndarray, "H W C"]) -> str:
    """Returns an image as a data address, for previews and frames."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def text(value: object) -> str:
    return html.escape(str(value))


def figure(item: Figure, *, has_actions: bool = False) -> str:
    """Returns a figure: the image as a button that enlarges it, its caption, and links to save it and to use it."""
    caption = f"<span>{text(item.caption)}</span>" * bool(item.caption)
    if item.download:
        name = text(item.download)
        caption += f'<a href="{text(item.source)}" download="{name}" aria-label="Save {text(item.alt)}">Save</a>'
    for action, (name, label) in ACTIONS.items() if has_actions and item.number else ():
        caption += (
            f'<button type="button" class="action" data-action="{action}" data-number="{item.number}" '
            f'aria-label="{label} {item.number}">{name}</button>'
        )
    return (
        f'<figure><button type="button" class="enlarge" data-details="{text(item.details)}" '
        f'aria-label="Enlarge {text(item.alt)}"><img src="{text(item.source)}" alt="{text(item.alt)}"></button>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def images(items: Sequence[Figure], label: str, *, columns: int = 0, size: str = "", has_actions: bool = False) -> str:
    """Returns images in `columns` columns; 0: in as many as fit, where fewer images are larger.

    `size` is the width of an image in CSS; "": that of its column.
    """
    if not items:
        return ""
    width = next((width for count, width in _SIZES if len(items) <= count), _SMALLEST)
    width = "7.5rem" if has_actions else width  # the actions of an image in one line
    figures = "".join(figure(item, has_actions=has_actions) for item in items)
    layout = f"--columns: {columns}" if columns else f"--width: {width}"
    layout += f"; max-width: {size}" * bool(size)
    kind = "images rows" if columns else "images"
    return f'<div class="{kind}" role="group" aria-label="{text(label)}" style="{layout}">{figures}</div>'


def side_by_side(groups: Mapping[str, Sequence[Figure]]) -> str:
    """Returns groups of images next to each other, or below each other in a narrow window, with their names."""
    parts = [f"<section><h3>{text(name)}</h3>{images(items, name)}</section>" for name, items in groups.items()]
    return f'<div class="side_by_side">{"".join(parts)}</div>'


def table(
    items: Sequence[Figure], columns: Sequence[str], rows: Sequence[str], corner: str = "", *, label: str = ""
) -> str:
    """Returns images in a table with labelled columns and rows, row by row."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    body = ""
    for i, name in enumerate(rows):
        cells = "".join(f"<td>{figure(item)}</td>" for item in items[i * len(columns) : (i + 1) * len(columns)])
        body += f'<tr><th scope="row">{text(name)}</th>{cells}</tr>'
    return (
        f'<div class="image_table" tabindex="0" role="region" aria-label="{text(label)}"><table>'
        f"<thead><tr><td>{text(corner)}</td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def heading(capabilities: Capabilities) -> str:
    """Returns the heading of the page, with a line about a run."""
    side, classes = capabilities.image_size, len(capabilities.class_names) or capabilities.classes
    parts = [capabilities.system, f"{side} x {side} pixels", f"{short_number(capabilities.num_parameters)} parameters"]
    parts += [f"{classes} classes"] * bool(classes) + ["text-conditioned"] * capabilities.text
    parts += [f"step {capabilities.step:,}"] * bool(capabilities.step)
    return f"<h1>diffjax</h1><p>{text(' · '.join(parts))}</p>"


def short_number(value: int) -> str:
    """Returns a number with three digits: 756K, 35.7M."""
    scale, suffix = next(((s, name) for s, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if value >= s), (1, ""))
    return f"{value / scale:.3g}{suffix}"


def placeholder(message: str) -> str:
    return f'<p class="placeholder">{text(message)}</p>'


def status(message: str, fraction: float | None = None) -> str:
    """Returns a line about a job: a progress bar for the finished fraction, 0 to 1, of a running one.

    Screen readers announce it without a fraction.
    """
    bar = "" if fraction is None else f'<progress value="{fraction:.3f}" max="1" aria-label="Progress"></progress>'
    role = 'role="status"' if fraction is None else 'aria-live="off"'
    return f'<div class="status" {role}>{bar}<span>{text(message)}</span></div>'


def error(message: str) -> str:
    return f'<div class="status error" role="alert"><span>{text(message)}</span></div>'


def command(commands: str, label: str = SAME_IMAGES) -> str:
    """Returns commands, one per line, with a button that copies them."""
    return (
        f'<section class="command" aria-label="{text(label)}"><header><span>{text(label)}</span>'
        f'<button type="button" class="copy">Copy</button></header>'
        f'<pre tabindex="0"><code>{text(commands)}</code></pre></section>'
    )


def notes(messages: Iterable[str]) -> str:
    return "".join(f'<p class="note">{text(message)}</p>' for message in messages)


def trajectory(
    frames: Sequence[Mapping[str, str]], panels: Mapping[str, str], numbers: Sequence[Mapping[str, float]]
) -> str:
    """Returns the steps of a trajectory, one visible at a time, with a slider that selects it.

    Args:
      frames: address of each image by the name of its panel, per step.
      panels: description of each panel by its name.
      numbers: quantities of each step, such as alpha.
    """
    steps = ""
    for i, (frame, values) in enumerate(zip(frames, numbers, strict=True), 1):
        figures = "".join(
            f'<figure><img src="{text(frame[name])}" alt="{text(name)} at step {i}" decoding="async">'
            f"<figcaption><b>{text(name)}</b><span>{text(description)}</span></figcaption></figure>"
            for name, description in panels.items()
            if name in frame
        )
        quantities = "".join(f"<dt>{text(name)}</dt><dd>{value:.4g}</dd>" for name, value in values.items())
        hidden = " hidden" * (i > 1)
        steps += (
            f'<div class="step" data-step="{i}"{hidden}><dl>{quantities}</dl><div class="panels">{figures}</div></div>'
        )
    return (
        f'<div class="trajectory"><label>Step <output>1</output> of {len(frames)}'
        f'<input type="range" min="1" max="{len(frames)}" value="1" step="1"'
        ' aria-label="Step of the trajectory"></label>'
        f"{steps}</div>"
    )
