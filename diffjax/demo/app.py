"""The page: a run, and the tabs Generate, Explore, Edit, Compare and History.

The page is served on this machine unless another host is set. It makes no requests to other hosts: fonts are those of
the system, and gradio's analytics are off. It serves the files of sessions alone, whose names cannot be guessed, and
its functions can be called by the page alone.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from diffjax.demo import html
from diffjax.demo.compare import Compare
from diffjax.demo.edit import Edit
from diffjax.demo.engine import Engine
from diffjax.demo.explore import Explore
from diffjax.demo.generate import Generate
from diffjax.demo.history import History
from diffjax.demo.session import MAX_BYTES, Sessions
from diffjax.demo.widgets import EVENT, Page
from diffjax.errors import UserError

_FOLDER = Path(__file__).parent
_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
_MONOSPACE_FONTS = ("ui-monospace", "monospace")
_MAX_AGE = 86_400  # seconds after which an upload of an open tab is deleted
_REFUSED = re.compile(
    r"/(proxy=|file=[a-z]+:/|run/(?!predict)|(api|call|run-history|vibe-\w+|undo-vibe-edit|custom_component|"
    r"process_recording|deep_link|openapi\.json|info|monitoring)(/|$))"
)


def build(engine: Engine, root: Path, grace: float = 60.0) -> gr.Blocks:
    """Returns the page.

    Args:
      engine: samples on behalf of the page.
      root: folder of the sessions' files.
      grace: seconds from the closing of a tab to the deletion of its files.
    """
    sessions = Sessions(root, grace)
    names = list(engine.names)
    with gr.Blocks(title="diffjax", analytics_enabled=False, delete_cache=(3_600, _MAX_AGE)) as blocks:
        with gr.Row(elem_classes="heading"):
            with gr.Column(min_width=280):
                heading = gr.HTML(html.heading(engine.capabilities(names[0])))
            run = gr.Dropdown(names, value=names[0], label="Run", min_width=280)
        page = Page(engine, sessions, run)
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Generate", id="generate"):
                generate = Generate(page)
            with gr.Tab("Explore", id="explore"):
                explore = Explore(page, generate)
            with gr.Tab("Edit", id="edit"):
                edit = Edit(page, generate)
            with gr.Tab("Compare", id="compare"):
                Compare(page, generate)
            with gr.Tab("History", id="history") as tab:
                History(page, generate, edit, tab)
        columns = [*generate.columns, *explore.columns, *edit.columns]

        def select(name: str) -> list[Any]:
            return [
                html.heading(engine.capabilities(name)),
                *(gr.update(visible=other == name) for other, _ in columns),
            ]

        run.change(select, run, [heading, *(column for _, column in columns)], **EVENT)
        blocks.unload(_closing(sessions))
    return blocks.queue(api_open=False, max_size=64)


def _closing(sessions: Sessions) -> Any:
    def close(request: gr.Request) -> None:
        sessions.close(request.session_hash)

    return close


@contextlib.contextmanager
def serving(
    engine: Engine, *, host: str = "127.0.0.1", port: int | None = None, share: bool = False, grace: float = 60.0
) -> Iterator[str]:
    """Serves the page; yields its address. At the end it deletes all files of sessions.

    Args:
      engine: samples on behalf of the page.
      host: address of the interface to listen on; 0.0.0.0: all.
      port: port to listen on; None: a free one from 7860.
      share: whether gradio forwards a public address to the page, through a server of its authors.
      grace: seconds from the closing of a tab to the deletion of its files.

    Raises:
      UserError: the port is in use, or the host is not of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="diffjax_demo_") as folder, _environment(folder, host):
        blocks = build(engine, Path(folder), grace)
        try:
            _, local, public = blocks.launch(
                server_name=host,
                server_port=port,
                share=share,
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                ssr_mode=False,
                run_history=False,
                footer_links=[],
                allowed_paths=[],
                max_file_size=MAX_BYTES,
                enable_monitoring=False,
                mcp_server=False,
                pwa=False,
                theme=_theme(),
                css=(_FOLDER / "page.css").read_text(encoding="utf-8"),
                head=f"<script>{(_FOLDER / 'page.js').read_text(encoding='utf-8')}</script>",
                app_kwargs={"middleware": [(RefusedRoutes, (), {})], "docs_url": None, "redoc_url": None},
            )
        except OSError as error:
            raise UserError(f"--port={port}: cannot be used on {host} ({error}); choose another port") from error
        try:
            yield public or local
        finally:
            blocks.close(verbose=False)


@contextlib.contextmanager
def _environment(folder: str, host: str) -> Iterator[None]:
    """Makes gradio keep uploads in `folder` and test the page without a proxy.

    Its variables that would open more than the page are ignored.
    """
    without_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), host]))
    variables = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "NO_PROXY": without_proxy}
    removed = (
        "GRADIO_ALLOWED_PATHS",
        "GRADIO_SHARE",
        "GRADIO_MCP_SERVER",
        "GRADIO_ROOT_PATH",
        "GRADIO_NUM_WORKERS",
        "GRADIO_SERVER_PORT",
    )
    former = {name: os.environ.get(name) for name in (*variables, *removed)}
    for name in removed:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class RefusedRoutes:
    """ASGI middleware that refuses gradio's routes that the page does not use: its API, and proxies of addresses."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and _REFUSED.search(path):
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not found"})
        else:
            await self._app(scope, receive, send)


def _theme() -> gr.themes.Base:
    """Returns a calm theme with the fonts of the system."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=_FONTS,
        font_mono=_MONOSPACE_FONTS,
    )
    return theme.set(  # a contrast of at least 4.5 to 1
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        slider_color="*primary_600",
    )
