"""State of one browser tab: its folder of files, its images, and its stop signal.

Files of a session are in a folder with an unguessable name, which is deleted when the tab is closed. The page shows
images by the address of these files; no other file of the machine is served.
"""

import dataclasses
import os
import re
import secrets
import shutil
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diffjax.errors import UserError

MAX_BYTES = 10 * 2**20  # of an uploaded file
MAX_PIXELS = 4096**2  # of an uploaded image
MAX_HISTORY = 1_000  # images that a session keeps; older ones are deleted
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image of the history.

    Attributes:
      number: position in the session, from 1.
      path: PNG with its settings, in the folder of the session.
      run: name of the run.
      caption: one line for the page, such as the prompt and the seed.
      alt: description of the image for screen readers.
      flags: flags of `launch.py sample` that it was sampled with.
      command: command that samples it.
    """

    number: int
    path: Path
    run: str
    caption: str
    alt: str
    flags: Mapping[str, str]
    command: str


class Session:
    """State of one browser tab.

    Args:
      root: folder in which the session makes its own.

    Attributes:
      folder: files of the session.
      history: its images, oldest first.
      stop: set to end the running job.
    """

    def __init__(self, root: Path):
        self.folder = root / f"session_{secrets.token_hex(16)}"
        self.history: list[Entry] = []
        self.stop = threading.Event()
        self._count = 0
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def close(self) -> None:
        """Stops the running job and deletes the folder. A session that is used again makes a new one."""
        self.stop.set()
        self.history.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_file(self, suffix: str, name: str = "") -> Path:
        """Returns the path of a new file in the folder: NUMBER_NAME.SUFFIX, without special characters."""
        self._count += 1
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stem = re.sub(r"[^A-Za-z0-9]+", "_", name)[:40].strip("_")
        return self.folder / ("_".join(filter(None, [f"{self._count:04d}", stem])) + suffix)

    def add(self, **fields: Any) -> Entry:
        """Appends an image to the history; deletes the oldest above MAX_HISTORY."""
        number = self.history[-1].number + 1 if self.history else 1
        entry = Entry(number=number, **fields)
        self.history.append(entry)
        while len(self.history) > MAX_HISTORY:
            self.history.pop(0).path.unlink(missing_ok=True)
        return entry

    def keep_upload(self, path: str | os.PathLike, name: str = "") -> Path:
        """Copies an uploaded image into the folder, under its own name, so that a command can name it.

        Raises:
          UserError: the file or the image is too large, or is not an image.
        """
        source = Path(path)
        check_upload(source)
        stem = re.sub(r"[^A-Za-z0-9-]+", "_", Path(name or source).stem)[:60].strip("_") or "image"
        folder = self.new_file("", "upload")
        folder.mkdir()
        return Path(shutil.copyfile(source, folder / f"{stem}{source.suffix.lower()}"))

    def without_folder(self, command: str) -> str:
        """Returns a command with its uploaded files by their names alone, as they are called on the user's machine."""
        return re.sub(rf"{re.escape(str(self.folder))}/(?:[^/\s]+/)?", "", command)


def check_upload(path: Path) -> None:
    """Checks an uploaded image, without decoding it.

    Raises:
      UserError: the file or the image is too large, or is not an image.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"upload: {size / 2**20:.1f} MB; must be at most {MAX_BYTES // 2**20} MB")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"upload: too many pixels; must be at most {MAX_PIXELS:,}, such as 4096 x 4096") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"upload: is not an image; use one of {', '.join(_FORMATS)}") from error
    if width * height > MAX_PIXELS:
        raise UserError(f"upload: {width} x {height} pixels; must be at most {MAX_PIXELS:,}, such as 4096 x 4096")


class Sessions:
    """The sessions of all open tabs, by gradio's identifier of a tab.

    Args:
      root: folder of the sessions' folders.
      grace: seconds from the closing of a tab to the deletion of its files; a tab whose connection was interrupted
        comes back within that time.
    """

    def __init__(self, root: Path, grace: float = 60.0):
        self._root, self._grace = root, grace
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._timers: dict[str, threading.Timer] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __getitem__(self, tab: str | None) -> Session:
        """Returns the session of a tab, a new one at its first use."""
        with self._lock:
            if timer := self._timers.pop(tab or "", None):
                timer.cancel()
            if tab not in self._sessions:
                self._sessions[tab or ""] = Session(self._root)
            return self._sessions[tab or ""]

    def close(self, tab: str | None) -> None:
        """Ends the running job of a tab, and its session after the time of grace."""
        with self._lock:
            if (session := self._sessions.get(tab or "")) is None:
                return
            session.stop.set()
            timer = self._timers[tab or ""] = threading.Timer(self._grace, self._delete, [tab or ""])
            timer.daemon = True
            timer.start()

    def _delete(self, tab: str) -> None:
        with self._lock:
            if self._timers.pop(tab, None) is not None:
                self._sessions.pop(tab).close()
