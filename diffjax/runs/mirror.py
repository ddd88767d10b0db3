"""Runs at URLs: a run has a local copy, downloaded when the run is opened and uploaded as it changes.

All other code uses the copy. The files at the URL have the same paths, so either folder is a run. There is no lock at
the URL: the training that began last owns the run, and an earlier one stops at its next upload.

Files are uploaded in an order that leaves a run that can be read and resumed, whenever the upload stops. A checkpoint
at the URL counts once it has its manifest, which is written after its other files and deleted before them.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import platform
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from diffjax import io, remote
from diffjax.cluster.signals import StopSignal
from diffjax.errors import UserError, note
from diffjax.remote import RemoteError, RemoteFolder
from diffjax.runs.checkpoint_files import MANIFEST, find_damage

_CHECKPOINT = re.compile(r"((?:.+/)?checkpoints)/(0|[1-9]\d*)/(.+)")  # folder of checkpoints, step, file of it
_SHARED = re.compile(r"(?:.+/)?(?:results/.+|samples/.+|grids\.json)")  # files that verbs other than `train` write
_RESULTS = re.compile(r"(?:.+/)?results/results\.jsonl")
_OWNER = ".owner.json"  # at the URL only: the training that began last
_RECORD = "record.json"  # next to the copy: its `_Record`
_LAST = "last_checkpoint.json"  # record of the newest checkpoint; step 0: no checkpoint yet
_NUM_PHASES = 4  # of an upload
_MAX_ATTEMPTS = 5  # of a download while another process changes the run
_POLL_INTERVAL = 2.0  # seconds between looks for a new checkpoint

_FileState = tuple[int, int]  # size in bytes, time of the last change in ns


@dataclasses.dataclass
class _Record:
    """State of a copy after the last transfer, stored next to the copy.

    Attributes:
      owner: id of the training that owned the run.
      files: by path, the state of the file in the copy, and its version at the URL (None: not known).
    """

    url: str
    owner: str | None = None
    files: dict[str, tuple[_FileState, str | None]] = dataclasses.field(default_factory=dict)

    def changed(self, local: dict[str, _FileState]) -> set[str]:
        """Returns the files of the copy, given by their states, that are new or were changed since the transfer."""
        return {path for path, state in local.items() if path not in self.files or self.files[path][0] != state}

    def version(self, path: str) -> str | None:
        return self.files[path][1] if path in self.files else None


class Mirror:
    """The local copy of a run at a URL."""

    def __init__(self, url: str):
        """Opens the copy; transfers nothing. Raises UserError for a URL of an unknown kind."""
        self.url = url
        self.folder = remote.copy_folder(url, "runs")
        self._root = remote.copy_root(url, "runs")
        self._record_file = self._root / _RECORD
        self._remote = RemoteFolder(url)
        self.is_downloaded = False  # since this process opened the run
        self._owner: str | None = None  # id of the training in this process
        self._lost: str | None = None  # why this process does not own the run any more

    @property
    def is_training(self) -> bool:
        """True while this process trains the run."""
        return self._owner is not None

    def refresh(self) -> None:
        """Downloads the run if this process opens it for the first time, or if the copy was deleted."""
        if not self.is_downloaded or not self.folder.exists():
            self.download()

    def download(self, checkpoint: str = "", *, for_training: bool = False) -> list[str]:
        """Makes the copy that of the URL, with the newest checkpoint of the run and of each part.

        Changes of the copy that are not uploaded yet are kept, unless another training has begun meanwhile. Results,
        samples and time grids are kept in any case.

        Args:
          checkpoint: another checkpoint to download, such as "checkpoints/100".
          for_training: download as many of the newest checkpoints as `train.keep_last`.

        Returns:
          The checkpoints at the URL.

        Raises:
          RemoteError: the URL cannot be read.
          UserError: a file changes faster than it is read.
        """
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                with remote.locked(self._root):
                    available = self._download(checkpoint, for_training, skip_damaged=attempt == _MAX_ATTEMPTS)
                self.is_downloaded = True
                return available
            except (FileNotFoundError, _DamagedError) as error:  # another process may have replaced a file
                if attempt == _MAX_ATTEMPTS:
                    raise UserError(f"{self.url}: changes while it is read ({error}); run the command again") from error
        raise AssertionError("unreachable")

    def upload_results(self) -> None:
        """Uploads results, samples and time grids of the copy. Raises RemoteError if that fails."""
        with remote.locked(self._root):
            self._upload(only_shared=True)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Owns the run while it trains: uploads it after each checkpoint, in a thread, and at the end.

        A failed upload is reported, and tried again with the next checkpoint. Does nothing if this process owns the run
        already, as for a part.

        Raises:
          RemoteError: the URL cannot be read or written at the start, or the last upload failed.
          UserError: another training has taken over.
        """
        if self.is_training:
            yield
            return
        self.download(for_training=True)
        self._take_over()
        stop = threading.Event()
        thread = threading.Thread(target=self._upload_checkpoints, args=(stop,), name="upload", daemon=True)
        try:
            self._upload_run()  # reports a URL that cannot be written before any training
            thread.start()
            has_failed = True
            try:
                yield
                has_failed = False
            finally:
                with StopSignal():  # signals do not end the last upload
                    stop.set()
                    thread.join()
                    self._finish(has_failed=has_failed)
        finally:
            self._owner = self._lost = None

    def check_owner(self) -> None:
        """Raises UserError if another training has taken over, as far as an upload has found."""
        if self._lost:
            raise UserError(self._lost)

    def _finish(self, *, has_failed: bool) -> None:
        """Uploads the run at the end of its training. After an error of training, a failure is only reported."""
        try:
            self.check_owner()
            self._upload_run()
        except (UserError, OSError) as error:  # OSError: the local disk is full
            if not has_failed:
                raise RemoteError(f"{error}; {self.folder} has the whole run") from error
            if not self._lost:
                note(f"{error}; {self.folder} has the whole run")

    def _upload_checkpoints(self, stop: threading.Event) -> None:
        """Uploads the run when there is a new checkpoint, until `stop`."""
        uploaded = _checkpoints(self._scan()).keys()
        while not stop.wait(_POLL_INTERVAL):
            checkpoints = _checkpoints(self._scan()).keys()
            if checkpoints - uploaded:
                try:
                    self._upload_run()
                except Exception as error:
                    note(str(error) if self._lost else f"{error}: training continues, and uploads the next checkpoint")
                if self._lost:
                    return
            uploaded = checkpoints

    def _take_over(self) -> None:
        """Makes the training of this process the owner, and deletes what interrupted uploads left at the URL.

        These are checkpoints without a manifest, and those that were to be deleted.
        """
        owner, process = secrets.token_hex(8), f"process {os.getpid()} on {platform.node()}"
        with remote.locked(self._root):
            self._remote.write(_OWNER, io.to_json({"id": owner, "process": process}).encode())
            record, files = self._read_record(), self._remote.list()
            record.owner = owner
            lasting: set[str | None] = {None}
            for folder, steps in _steps(_checkpoints(files)).items():
                last, every = self._kept_checkpoints(folder)
                newest = sorted(steps)[-last:]
                lasting |= {f"{folder}/{step}" for step in steps if step in newest or (every and step % every == 0)}
            self._delete({path for path in files if _checkpoint(path) not in lasting}, record)
            self._write_record(record)
        self._owner = owner

    def _read_owner(self) -> dict[str, Any]:
        """Returns the "id" and the "process" of the training that owns the run; {}: no training does."""
        try:
            owner = io.from_json(self._remote.read(_OWNER))
        except (FileNotFoundError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _upload_run(self) -> None:
        """Uploads what has changed. Raises UserError if another training owns the run, RemoteError if it fails."""
        with remote.locked(self._root):
            owner = self._read_owner()
            if owner.get("id") != self._owner:
                process = owner.get("process", "another process")
                self._lost = f"{self.url}: {process} has begun to train this run; stop one of the two trainings"
                raise UserError(self._lost)
            self._upload()

    def _download(self, checkpoint: str, for_training: bool, *, skip_damaged: bool) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        record, listing, local = self._read_record(), self._remote.list(), self._scan()
        owner = self._read_owner().get("id") if _OWNER in listing else None
        versions = {path: version for path, (version, _) in listing.items() if not _is_hidden(path)}
        changed = record.changed(local)
        preserved = {path for path in changed if owner == record.owner or _SHARED.fullmatch(path)}
        outdated = {path for path in versions if path in changed or record.version(path) != versions[path]}
        outdated |= versions.keys() - local.keys()
        if replaced := sorted({name for name in map(_checkpoint, changed - preserved) if name}):
            names = ", ".join(replaced)
            note(f"{self.url}: another training has begun since, so {names} of the copy, not uploaded, is deleted")

        def download(path: str) -> None:
            if path not in preserved:
                self._remote.download(path, self.folder / path)
                record.files[path] = self._state(path), versions[path]
            elif _RESULTS.fullmatch(path) and record.version(path) != versions[path]:
                self._add_results(path)

        try:
            remote.for_each(download, [path for path in outdated if not _checkpoint(path)])
            available = _checkpoints(versions)
            for folder, steps in _steps(available).items():
                count = (self._kept_checkpoints(folder)[0] or 1) if for_training else 1
                for step in sorted(steps, reverse=True):
                    name = f"{folder}/{step}"
                    if count <= 0 and name != checkpoint:
                        continue
                    files = {f"{name}/{file}" for file in available[name]}
                    if files & outdated and not files & preserved:
                        try:
                            self._download_checkpoint(name, available[name])
                        except _DamagedError as error:
                            if not skip_damaged:
                                raise
                            note(f"{error}: the checkpoint is skipped")
                            continue
                        record.files |= {path: (self._state(path), versions[path]) for path in files}
                    count -= 1
            for path in local.keys() - versions.keys() - preserved:
                self._delete_local(path)
                record.files.pop(path, None)
            record.owner = owner
        finally:
            self._write_record(record)
        return sorted(available)

    def _download_checkpoint(self, checkpoint: str, names: Iterable[str]) -> None:
        """Downloads a checkpoint and checks it, before it gets its name in the copy."""
        target, temporary = self.folder / checkpoint, self._root / "incoming"
        shutil.rmtree(temporary, ignore_errors=True)
        remote.for_each(lambda name: self._remote.download(f"{checkpoint}/{name}", temporary / name), names)
        if damage := find_damage(temporary):
            raise _DamagedError(f"{self.url}/{checkpoint}: {damage}")
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)

    def _upload(self, *, only_shared: bool = False) -> None:
        # Read before the checkpoints are listed, as training continues: at the URL its checkpoint must exist.
        last = {path: (self._state(path), (self.folder / path).read_bytes()) for path in self._scan() if _is_last(path)}
        record, local = self._read_record(), self._scan()
        local = {path: state for path, state in local.items() if not _is_last(path)}
        local |= {path: state for path, (state, _) in last.items()}
        if "config.json" in record.files and "config.json" not in local:
            raise RemoteError(f"{self.folder}: was deleted during the command, so it is not uploaded to {self.url}")
        changed, deleted = record.changed(local), record.files.keys() - local.keys()
        # A checkpoint that is being deleted from the copy is not uploaded, and deleted at the URL as a whole.
        partial = {name for name in map(_checkpoint, deleted) if name}
        partial |= {name for name in map(_checkpoint, changed) if name and self._lacks_files(name, local)}
        changed = {path for path in changed if _checkpoint(path) not in partial}
        deleted = {path for path in record.files if path in deleted or _checkpoint(path) in partial}
        if only_shared:
            changed, deleted = ({path for path in paths if _SHARED.fullmatch(path)} for paths in (changed, deleted))
        if not changed and not deleted:
            return
        for path in filter(_RESULTS.fullmatch, changed):
            if record.version(path) != self._remote.list().get(path, (None, 0))[0]:
                self._add_results(path)
                local[path] = self._state(path)

        known = frozenset(partial)

        def upload(path: str) -> None:
            if _checkpoint(path) in partial:
                return
            try:
                self._remote.upload(self.folder / path, path)
                record.files[path] = local[path], None
            except FileNotFoundError:  # deleted meanwhile
                partial.add(_checkpoint(path) or path)

        try:
            for path in filter(_is_last, changed - record.files.keys()):
                # Before the log, which without this record is that of a run whose checkpoints are missing.
                self._remote.write(path, io.to_json({"step": 0}).encode())
            for phase in range(_NUM_PHASES):
                remote.for_each(upload, [path for path in changed if _phase(path) == phase])
            for path in filter(_is_last, changed if partial == known else ()):
                self._remote.write(path, last[path][1])
                record.files[path] = local[path], None
            self._delete(deleted, record)
            for path, (version, _) in self._remote.list().items():
                if path in changed and path in record.files:
                    record.files[path] = record.files[path][0], version
        finally:
            self._write_record(record)

    def _delete(self, paths: Collection[str], record: _Record) -> None:
        """Deletes files at the URL, manifests first."""

        def delete(path: str) -> None:
            self._remote.delete(path)
            record.files.pop(path, None)

        for is_manifest in (True, False):
            remote.for_each(delete, [path for path in paths if path.endswith(f"/{MANIFEST}") == is_manifest])

    def _lacks_files(self, checkpoint: str, local: Collection[str]) -> bool:
        """Returns whether a checkpoint of the copy lacks its manifest, or files that this has."""
        try:
            manifest = io.from_json((self.folder / checkpoint / MANIFEST).read_bytes())
            return any(f"{checkpoint}/{name}" not in local for name in manifest["sha256"])
        except (OSError, ValueError, TypeError, KeyError):
            return True

    def _add_results(self, path: str) -> None:
        """Adds the lines of a file of results at the URL to that of the copy, before the lines that only this has."""
        theirs = self._remote.read(path).splitlines() if path in self._remote.list() else []
        ours = (self.folder / path).read_bytes().splitlines()
        lines = [*theirs, *(line for line in ours if line not in {*theirs})]
        with io.atomic_path(self.folder / path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in lines))

    def _kept_checkpoints(self, folder: str) -> tuple[int, int]:
        """Returns `train.keep_last` and `keep_every` of the run with a folder of checkpoints; 0, 0: it keeps all."""
        try:
            section = io.read_json((self.folder / folder).with_name("config.json"), "restore it")["train"]
            return int(section["keep_last"]), int(section["keep_every"])
        except (OSError, UserError, TypeError, KeyError, ValueError):
            return 0, 0

    def _scan(self) -> dict[str, _FileState]:
        """Returns the state of each file of the copy, by path. Temporary files and symbolic links are omitted."""
        states = {}
        for folder, folders, names in os.walk(self.folder):
            relative = Path(folder).relative_to(self.folder)
            folders[:] = [name for name in folders if not _is_hidden((relative / name).as_posix())]
            for path in [(relative / name).as_posix() for name in names]:
                with contextlib.suppress(FileNotFoundError):
                    if not _is_hidden(path) and stat.S_ISREG((self.folder / path).lstat().st_mode):
                        states[path] = self._state(path)
        return states

    def _state(self, path: str) -> _FileState:
        status = (self.folder / path).stat()
        return status.st_size, status.st_mtime_ns

    def _delete_local(self, path: str) -> None:
        """Deletes a file of the copy, and the folders that this empties."""
        (self.folder / path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            for folder in list(Path(path).parents)[:-1]:
                (self.folder / folder).rmdir()

    def _read_record(self) -> _Record:
        advice = f"delete {self._root}"
        try:
            record = io.read_json(self._record_file, advice)
            files = {path: ((size, time), version) for path, ((size, time), version) in record["files"].items()}
            return _Record(self.url, record["owner"], files)
        except FileNotFoundError:
            return _Record(self.url)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{self._record_file} is damaged: {advice}") from error

    def _write_record(self, record: _Record) -> None:
        io.write_json(self._record_file, dataclasses.asdict(record))


class _DamagedError(Exception):
    """A checkpoint at the URL that is damaged, or was replaced while it was read."""


_opened: dict[str, Mirror] = {}  # by URL, of this process


def resolve(path: Path) -> Path:
    """Returns the local copy of a run at a URL, which is downloaded when the run is first opened; other paths as is.

    Raises:
      UserError: the URL is of an unknown kind, or cannot be read.
    """
    url = remote.url_of(path) or _url_of_copy(path)
    if url is None:
        return path
    if url not in _opened:
        _opened[url] = Mirror(url)
    _opened[url].refresh()
    return _opened[url].folder if remote.url_of(path) else path


def _url_of_copy(folder: Path) -> str | None:
    """Returns the URL of a folder in a copy, as messages name it; None for other folders."""
    with contextlib.suppress(OSError, UserError, ValueError, LookupError, TypeError):
        copies = remote.copies("runs")
        return io.read_json(copies / folder.relative_to(copies).parts[0] / _RECORD, "")["url"]
    return None


def mirror_of(folder: Path) -> Mirror | None:
    """Returns the mirror of a run or part that this process has opened at a URL; None for other folders."""
    return next((mirror for mirror in _opened.values() if folder.is_relative_to(mirror.folder)), None)


def name_of(folder: Path) -> str | None:
    """Returns the URL of the local copy of a run or part; None for other folders."""
    mirror = mirror_of(folder)
    return mirror and "/".join([mirror.url, *folder.relative_to(mirror.folder).parts])


def fetch_checkpoint(checkpoint: Path) -> None:
    """Downloads a checkpoint of a run at a URL if its copy lacks it. Raises UserError if the URL lacks it too."""
    mirror = mirror_of(checkpoint)
    if mirror is None or mirror.is_training or checkpoint.exists():
        return
    name = checkpoint.relative_to(mirror.folder).as_posix()
    available = mirror.download(name)
    if name not in available:
        steps = sorted(_steps(available).get(name.rpartition("/")[0], ()))
        choices = f"choose from {', '.join(map(str, steps))}" if steps else "train first"
        raise UserError(f"no checkpoint of step {checkpoint.name} in {name_of(checkpoint.parent)}; {choices}")


def upload_results() -> None:
    """Uploads results, samples and time grids of the runs that this process has opened at URLs.

    Raises:
      RemoteError: that fails.
    """
    for mirror in _opened.values():
        if not mirror.is_training:
            mirror.upload_results()


def forget() -> None:
    """Makes this process download runs again when it opens them next."""
    for mirror in _opened.values():
        mirror.is_downloaded = mirror.is_training


def _checkpoint(path: str) -> str | None:
    """Returns the checkpoint that has a file, such as "checkpoints/100"; None: the file is of no checkpoint."""
    match = _CHECKPOINT.fullmatch(path)
    return f"{match[1]}/{match[2]}" if match else None


def _checkpoints(paths: Iterable[str]) -> dict[str, list[str]]:
    """Returns the checkpoints that have a manifest, with the paths of their files in them."""
    files = collections.defaultdict(list)
    for match in filter(None, map(_CHECKPOINT.fullmatch, paths)):
        files[f"{match[1]}/{match[2]}"].append(match[3])
    return {name: names for name, names in files.items() if MANIFEST in names}


def _steps(checkpoints: Iterable[str]) -> dict[str, list[int]]:
    """Returns the steps of checkpoints by folder."""
    steps = collections.defaultdict(list)
    for folder, _, step in (checkpoint.rpartition("/") for checkpoint in checkpoints):
        steps[folder].append(int(step))
    return steps


def _phase(path: str) -> int:
    """Returns the phase of an upload for a file: each may rely on the files of those before. -1: after the others."""
    if match := _CHECKPOINT.fullmatch(path):
        return 3 if match[3] == MANIFEST else 2
    return -1 if _is_last(path) else int(path.rpartition("/")[2] == "config.json")


def _is_last(path: str) -> bool:
    return path.rpartition("/")[2] == _LAST


def _is_hidden(path: str) -> bool:
    """Returns whether a file is not uploaded: hidden and temporary files, and what is set aside in `checkpoints`."""
    parts = path.split("/")
    is_aside = any(a == "checkpoints" and not b.isdigit() for a, b in itertools.pairwise(parts))
    return is_aside or any(part.startswith(".") for part in parts)
