"""Atomic writes, bounded reads, strict JSON in files and in lines, and hashes."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from diffjax.errors import UserError

MAX_JSON = 2**24  # bytes of a JSON file; a parsed value can take 30 times as many
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; it replaces `path` if the block succeeds, else it is deleted.

    A reader sees the old file or the new one, never a part. The temporary name is hidden and random, so that it is not
    a user's file. A symbolic link at `path` is replaced, not followed.

    Raises:
      OSError: the file cannot be written; it names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file to read bytes. A pipe or a device, which may never end, raises OSError."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return open(path, "rb")


def read_bytes(path: str | Path, limit: int) -> bytes:
    """Returns the content of a regular file.

    Raises:
      OSError: the file cannot be read.
      UserError: the file has more than `limit` bytes.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path}: larger than {limit:,} bytes, the limit for such a file; use another file")
    return content


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: Any, *, sort_keys: bool = False) -> None:
    """Writes a JSON file atomically, in the form of `to_json`."""
    write_text(path, to_json(value, indent=2, sort_keys=sort_keys) + "\n")


def to_json(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Returns strict JSON, which every parser reads.

    JSON has no non-finite numbers: they become the strings "NaN", "Infinity" and "-Infinity", as in the JSON mapping
    of Protocol Buffers, and `from_json` turns them back into numbers.
    """
    return json.dumps(_encode(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """Returns the value of `to_json`. Raises ValueError where the text is not strict JSON in UTF-8."""
    try:
        return _decode(parse_json(text))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_json(text: str | bytes) -> Any:
    """Returns the value of strict JSON that another program wrote: strings stay strings.

    Raises:
      ValueError: the text is not strict JSON in UTF-8, or it is nested more deeply than Python's recursion limit.
    """

    def reject(constant: str):
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=reject)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: str | Path, advice: str) -> Any:
    """Returns the value of a JSON file.

    Args:
      path: file to read.
      advice: what the user should do if the file is damaged, for the error message.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: the file is not strict JSON, or larger than MAX_JSON; the message names it and ends with `advice`.
    """
    try:
        return from_json(read_bytes(path, MAX_JSON))
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path} is damaged ({error}): {advice}") from error


def append_json_line(path: str | Path, value: Any) -> None:
    """Appends a line with a value, in the form of `to_json`, and waits until it is on the disk.

    Other processes may append at the same time. A line without an end, of a process that was killed, stays apart.

    Raises:
      OSError: the line cannot be written; the file is as before.
    """
    line = to_json(value).encode() + b"\n"
    with open(path, "ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file.fileno()).st_size
        try:
            unwritten = (b"\n" if _is_torn(path) else b"") + line
            while unwritten:  # a full disk may accept a part of the line
                unwritten = unwritten[os.write(file.fileno(), unwritten) :]
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)
            raise type(error)(error.errno, error.strerror, str(path)) from error


def read_json_lines(path: str | Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Reads a file of one JSON object per line.

    Returns:
      The objects, and the numbers of damaged lines, from 1. A last line without an end, which is being written or was
      torn by a kill, counts as neither, unless it is whole. Both are empty if there is no file.
    """
    values, damaged = [], []
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return values, damaged
    for number, line in enumerate(lines, 1):
        try:
            value = from_json(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            values.append(value)
        elif line.strip() and number < len(lines):
            damaged.append(number)
    return values, damaged


def _is_torn(path: str | Path) -> bool:
    """Returns whether the last line of a file lacks its end."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def short_hash(data: str | bytes) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of `data`."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits, in constant memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Returns diffjax's folder in the user's cache folder, $XDG_CACHE_HOME or ~/.cache; it may not exist.

    An XDG_CACHE_HOME that is empty or relative counts as unset, as the XDG base directory specification requires.

    Raises:
      RuntimeError: the user has no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "diffjax"


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _encode(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decode(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_decode(child) for child in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
