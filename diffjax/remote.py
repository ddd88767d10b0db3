"""Files at a URL, such as gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, through fsspec; and local copies of folders.

An object store writes a file whole or not at all, and lists it at once. It has no locks, renames no folders, and writes
no two files together.
"""

import concurrent.futures
import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from diffjax import io
from diffjax.errors import UserError, excerpt, note

_URL = re.compile(r"([a-z][a-z0-9+.-]*):/+(.+)")  # pathlib writes :// as :/
_TOKENS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime", "created", "size")
_PAUSES = (1.0, 4.0, 16.0)  # seconds before each further attempt
_THREADS = 16  # files that are transferred at a time
_FINAL = (FileNotFoundError, PermissionError, NotImplementedError)  # errors that another attempt does not change

T = TypeVar("T")


class RemoteError(UserError):
    """A file or folder at a URL that cannot be read or written."""


def url_of(path: str | os.PathLike) -> str | None:
    """Returns the URL that a path is, without a slash at its end; None for a local path."""
    match = _URL.fullmatch(os.fspath(path))
    return f"{match[1]}://{match[2].rstrip('/')}" if match else None


def copies(kind: str) -> Path:
    """Returns the folder of local copies of "runs" or "data", in $DIFFJAX_CACHE or in the user's cache folder.

    Raises:
      UserError: DIFFJAX_CACHE is not set, and the user has no home directory.
    """
    try:
        return Path(os.environ.get("DIFFJAX_CACHE") or io.cache_folder()).absolute() / "remote" / kind
    except RuntimeError as error:
        raise UserError(f"DIFFJAX_CACHE is not set, and {error}; set it to a folder for copies of URLs") from error


def copy_root(url: str, kind: str) -> Path:
    """Returns the folder for the local copy of the folder at a URL, and for the files that describe the copy."""
    return copies(kind) / io.short_hash(url)


def copy_folder(url: str, kind: str) -> Path:
    """Returns the local copy of the folder at a URL, which has the same name; it may not exist."""
    return copy_root(url, kind) / url.rpartition("/")[2]


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Creates the folder of a local copy, and holds its lock, which ends with the process."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class RemoteFolder:
    """A folder at a URL; paths of files are relative to it, with slashes.

    Every operation is tried several times; the last failure raises RemoteError. A file to read that does not exist
    raises FileNotFoundError.
    """

    def __init__(self, url: str):
        """Opens a folder; connects to nothing. Raises UserError for an unknown protocol or a missing package."""
        self.url = url
        protocol = url.partition("://")[0]
        try:
            if protocol in ("file", "local"):
                raise UserError(f"{url}: is a local folder; name it without {protocol}://")
            self._files, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise UserError(
                f"{url}: a package is missing ({excerpt(str(error))}); pip install 'diffjax[remote]' for gs:// and s3://"
            ) from error
        except ValueError as error:  # an unknown protocol, or options in the environment
            raise UserError(
                f"{url}: cannot be opened ({excerpt(str(error))}); name a local folder, gs://BUCKET/FOLDER or "
                "s3://BUCKET/FOLDER"
            ) from error

    def list(self, below: str = "") -> dict[str, tuple[str, int]]:
        """Returns the version and the size in bytes of each file, by path; {} for a folder without files.

        Args:
          below: folder whose files are listed; "": all.
        """

        def find() -> dict[str, Any]:
            self._files.invalidate_cache()
            try:
                return self._files.find(self._path(below), detail=True)  # pyright: ignore[reportReturnType]
            except FileNotFoundError:
                return {}

        infos, start = self._try("listed", "", find), len(self._root.rstrip("/")) + 1
        return {
            path[start:]: (str(next(info[name] for name in _TOKENS if info.get(name) is not None)), info["size"])
            for path, info in infos.items()
            # Not a placeholder of a folder, nor a path that leads out of a local copy.
            if info.get("type") == "file" and not {"", ".", ".."} & {*path[start:].split("/")}
        }

    def read(self, path: str) -> bytes:
        """Returns the content of a file."""
        return self._try("read", path, lambda: self._files.cat_file(self._path(path)))

    def write(self, path: str, content: bytes) -> None:
        """Writes a file."""
        self._try("written", path, lambda: self._files.pipe_file(self._path(path), content))

    def download(self, path: str, target: Path) -> None:
        """Copies a file to this machine, atomically."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with io.atomic_path(target) as temporary:
            self._try("read", path, lambda: self._files.get_file(self._path(path), str(temporary)))

    def upload(self, source: Path, path: str) -> None:
        """Copies a file of this machine. Raises FileNotFoundError if it does not exist."""
        try:
            self._try("written", path, lambda: self._files.put_file(str(source), self._path(path)))
        except RemoteError as error:
            if source.exists():
                raise
            raise FileNotFoundError(f"{source} was deleted") from error

    def delete(self, path: str) -> None:
        """Deletes a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._try("deleted", path, lambda: self._files.rm_file(self._path(path)))

    def _path(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}" if path else self._root

    def _try(self, action: str, path: str, act: Callable[[], T]) -> T:
        for pause in (*_PAUSES, None):
            try:
                return act()
            except Exception as error:  # of the network, or of any library
                if isinstance(error, FileNotFoundError) and action != "written":
                    raise
                if pause is None or isinstance(error, _FINAL):
                    where = f"{self.url}/{path}" if path else self.url
                    reason = excerpt(f"{type(error).__name__}: {error}")
                    raise RemoteError(
                        f"{where}: cannot be {action} ({reason}); check the network and the permissions, and run the "
                        "same command again"
                    ) from error
                time.sleep(pause)
        raise AssertionError("unreachable")


def for_each(act: Callable[[T], object], items: Iterable[T]) -> None:
    """Calls a function for each item, several at a time. Raises the first error, after all calls that have begun."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(act, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def local_data(directory: str, below: str = "") -> str:
    """Returns the local copy of a folder of data at a URL, which is downloaded once; another folder as it is.

    A copy is complete or is continued. It is not compared with the URL again.

    Args:
      directory: folder or URL.
      below: folder in it that is needed; "": all.

    Raises:
      UserError: the URL cannot be read, or has no files there.
    """
    url = url_of(directory)
    if url is None:
        return directory
    folder, root = copy_folder(url, "data"), copy_root(url, "data")
    complete = root / f"complete_{io.short_hash(below)}.json"
    with locked(root):
        if complete.exists():
            return str(folder)
        remote = RemoteFolder(url)
        sizes = {path: size for path, (_, size) in remote.list(below).items()}
        if not sizes:
            raise UserError(f"data.dir={url}: has no files{f' in {below}' if below else ''}; correct the URL")
        missing = [path for path, size in sizes.items() if not _has_size(folder / path, size)]
        total = sum(sizes.values()) / 2**30
        note(f"data.dir={url}: {len(sizes):,} files ({total:,.2f} GiB) are copied to {folder}")
        for_each(lambda path: remote.download(path, folder / path), missing)
        io.write_json(complete, {"url": url, "below": below})
    return str(folder)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
