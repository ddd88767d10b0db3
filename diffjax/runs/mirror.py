"""Runs at URLs: a run has a local copy, downloaded when the run is opened and uploaded as it changes.

All other code uses the copy. The files at the URL have the same paths, so either folder is a run. There is no lock at
the URL: the training that began last owns the run, and an earlier one stops at its next upload.

Files are uploaded in an order that leaves a run that can be read and resumed, whenever the upload stops. A checkpoint
at the URL counts once it has its manifest, which is written after its other files and deleted before them.
"""

import contextlib
import os
import platform
import secrets
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from diffjax import io, remote
from diffjax.cluster.signals import StopSignal
from diffjax.errors import UserError, note
from diffjax.remote import RemoteError, RemoteFolder
from diffjax.runs import run_copy
from diffjax.runs.checkpoint_files import MANIFEST, find_damage
from diffjax.runs.run_copy import Record, RunCopy

_OWNER = ".owner.json"  # at the URL only: the training that began last
_MAX_ATTEMPTS = 5  # of a download while another process changes the run
_POLL_INTERVAL = 2.0  # seconds between looks for a new checkpoint


class Mirror:
    """The local copy of a run at a URL."""

    def __init__(self, url: str):
        """Opens the copy; transfers nothing. Raises UserError for a URL of an unknown kind."""
        self.url = url
        self._copy = RunCopy(url)
        self.folder = self._copy.folder
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
                with remote.locked(self._copy.root):
                    available = self._download(checkpoint, for_training, skip_damaged=attempt == _MAX_ATTEMPTS)
                self.is_downloaded = True
                return available
            except (FileNotFoundError, _DamagedError) as error:  # another process may have replaced a file
                if attempt == _MAX_ATTEMPTS:
                    raise UserError(f"{self.url}: changes while it is read ({error}); run the command again") from error
        raise AssertionError("unreachable")

    def upload_results(self) -> None:
        """Uploads results, samples and time grids of the copy. Raises RemoteError if that fails."""
        with remote.locked(self._copy.root):
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
        uploaded = run_copy.complete_checkpoints(self._copy.scan()).keys()
        while not stop.wait(_POLL_INTERVAL):
            checkpoints = run_copy.complete_checkpoints(self._copy.scan()).keys()
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
        with remote.locked(self._copy.root):
            self._remote.write(_OWNER, io.to_json({"id": owner, "process": process}).encode())
            record, files = self._copy.read_record(), self._remote.list()
            record.owner = owner
            lasting: set[str | None] = {None}
            for folder, steps in run_copy.steps_by_folder(run_copy.complete_checkpoints(files)).items():
                last, every = self._copy.retention(folder)
                newest = sorted(steps)[-last:]
                lasting |= {f"{folder}/{step}" for step in steps if step in newest or (every and step % every == 0)}
            self._delete({path for path in files if run_copy.checkpoint_of(path) not in lasting}, record)
            self._copy.write_record(record)
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
        with remote.locked(self._copy.root):
            owner = self._read_owner()
            if owner.get("id") != self._owner:
                process = owner.get("process", "another process")
                self._lost = f"{self.url}: {process} has begun to train this run; stop one of the two trainings"
                raise UserError(self._lost)
            self._upload()

    def _download(self, checkpoint: str, for_training: bool, *, skip_damaged: bool) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        record, listing, local = self._copy.read_record(), self._remote.list(), self._copy.scan()
        owner = self._read_owner().get("id") if _OWNER in listing else None
        versions = {path: version for path, (version, _) in listing.items() if not run_copy.is_hidden(path)}
        changed = record.changed(local)
        preserved = {path for path in changed if owner == record.owner or run_copy.is_shared(path)}
        outdated = {path for path in versions if path in changed or record.version(path) != versions[path]}
        outdated |= versions.keys() - local.keys()
        if replaced := sorted({name for name in map(run_copy.checkpoint_of, changed - preserved) if name}):
            names = ", ".join(replaced)
            note(f"{self.url}: another training has begun since, so {names} of the copy, not uploaded, is deleted")

        def download(path: str) -> None:
            if path not in preserved:
                self._remote.download(path, self.folder / path)
                record.files[path] = self._copy.state(path), versions[path]
            elif run_copy.has_results(path) and record.version(path) != versions[path]:
                self._add_results(path)

        try:
            remote.for_each(download, [path for path in outdated if not run_copy.checkpoint_of(path)])
            available = run_copy.complete_checkpoints(versions)
            for folder, steps in run_copy.steps_by_folder(available).items():
                count = (self._copy.retention(folder)[0] or 1) if for_training else 1
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
                        record.files |= {path: (self._copy.state(path), versions[path]) for path in files}
                    count -= 1
            for path in local.keys() - versions.keys() - preserved:
                self._copy.delete(path)
                record.files.pop(path, None)
            record.owner = owner
        finally:
            self._copy.write_record(record)
        return sorted(available)

    def _download_checkpoint(self, checkpoint: str, names: Iterable[str]) -> None:
        """Downloads a checkpoint and checks it, before it gets its name in the copy."""
        target, temporary = self.folder / checkpoint, self._copy.root / "incoming"
        shutil.rmtree(temporary, ignore_errors=True)
        remote.for_each(lambda name: self._remote.download(f"{checkpoint}/{name}", temporary / name), names)
        if damage := find_damage(temporary):
            raise _DamagedError(f"{self.url}/{checkpoint}: {damage}")
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)

    def _upload(self, *, only_shared: bool = False) -> None:
        # Read before the checkpoints are listed, as training continues: at the URL its checkpoint must exist.
        last = {
            path: (self._copy.state(path), (self.folder / path).read_bytes())
            for path in self._copy.scan()
            if run_copy.is_last_record(path)
        }
        record, local = self._copy.read_record(), self._copy.scan()
        local = {path: state for path, state in local.items() if not run_copy.is_last_record(path)}
        local |= {path: state for path, (state, _) in last.items()}
        if "config.json" in record.files and "config.json" not in local:
            raise RemoteError(f"{self.folder}: was deleted during the command, so it is not uploaded to {self.url}")
        changed, deleted = record.changed(local), record.files.keys() - local.keys()
        # A checkpoint that is being deleted from the copy is not uploaded, and deleted at the URL as a whole.
        partial = {name for name in map(run_copy.checkpoint_of, deleted) if name}
        touched = {name for name in map(run_copy.checkpoint_of, changed) if name}
        partial |= {name for name in touched if self._copy.lacks_files(name, local)}
        changed = {path for path in changed if run_copy.checkpoint_of(path) not in partial}
        deleted = {path for path in record.files if path in deleted or run_copy.checkpoint_of(path) in partial}
        if only_shared:
            changed, deleted = ({path for path in paths if run_copy.is_shared(path)} for paths in (changed, deleted))
        if not changed and not deleted:
            return
        if results := list(filter(run_copy.has_results, changed)):
            listing = self._remote.list()
            for path in results:
                if path in listing and record.version(path) != listing[path][0]:
                    self._add_results(path)
                    local[path] = self._copy.state(path)

        known = frozenset(partial)

        def upload(path: str) -> None:
            if run_copy.checkpoint_of(path) in partial:
                return
            try:
                self._remote.upload(self.folder / path, path)
                record.files[path] = local[path], None
            except FileNotFoundError:  # deleted meanwhile
                partial.add(run_copy.checkpoint_of(path) or path)

        try:
            for path in filter(run_copy.is_last_record, changed - record.files.keys()):
                # Before the log, which without this record is that of a run whose checkpoints are missing.
                self._remote.write(path, io.to_json({"step": 0}).encode())
            for phase in range(run_copy.NUM_PHASES):
                remote.for_each(upload, [path for path in changed if run_copy.upload_phase(path) == phase])
            for path in filter(run_copy.is_last_record, changed if partial == known else ()):
                self._remote.write(path, last[path][1])
                record.files[path] = local[path], None
            self._delete(deleted, record)
            for path, (version, _) in self._remote.list().items():
                if path in changed and path in record.files:
                    record.files[path] = record.files[path][0], version
        finally:
            self._copy.write_record(record)

    def _delete(self, paths: Collection[str], record: Record) -> None:
        """Deletes files at the URL, manifests first."""

        def delete(path: str) -> None:
            self._remote.delete(path)
            record.files.pop(path, None)

        for is_manifest in (True, False):
            remote.for_each(delete, [path for path in paths if path.endswith(f"/{MANIFEST}") == is_manifest])

    def _add_results(self, path: str) -> None:
        """Adds the lines of a file of results at the URL to that of the copy, before the lines that only this has."""
        self._copy.add_lines(path, self._remote.read(path).splitlines())


class _DamagedError(Exception):
    """A checkpoint at the URL that is damaged, or was replaced while it was read."""


_opened: dict[str, Mirror] = {}  # by URL, of this process


def resolve(path: Path) -> Path:
    """Returns the local copy of a run at a URL, which is downloaded when the run is first opened; other paths as is.

    Raises:
      UserError: the URL is of an unknown kind, or cannot be read.
    """
    url = remote.url_of(path) or run_copy.url_of_copy(path)
    if url is None:
        return path
    if url not in _opened:
        _opened[url] = Mirror(url)
    _opened[url].refresh()
    return _opened[url].folder if remote.url_of(path) else path


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
        steps = sorted(run_copy.steps_by_folder(available).get(name.rpartition("/")[0], ()))
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
