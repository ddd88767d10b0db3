"""Output folders that are complete or absent."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from diffjax import remote
from diffjax.errors import UserError


@contextlib.contextmanager
def new_folder(out: Path, *, flag: str = "out") -> Iterator[Path]:
    """Yields a temporary folder that becomes `out` if the block succeeds, and is deleted if it fails.

    Raises:
      UserError: `out` is not empty or cannot be created, or the disk is full.
    """
    if url := remote.url_of(out):
        raise UserError(f"--{flag}={url}: must be a local folder; choose one, and copy it to the URL afterwards")
    target = Path(os.path.realpath(out))  # fills an empty folder that `out` links to, and keeps the link
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"--{flag}={out} is not empty; choose a new folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        temporary.replace(target)
    except OSError as error:
        if error.filename and not Path(error.filename).is_relative_to(target.parent):
            raise  # reading the run failed
        reason = error.strerror or error
        raise UserError(f"--{flag}={out}: cannot be written ({reason}); free space or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
