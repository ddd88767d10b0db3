"""The files of checkpoints: a manifest with the SHA-256 of every file, and checks against it.

A checkpoint is a folder named by its step. The manifest is part of Orbax's atomic write, so a file that is later
truncated, changed or lost is detected.
"""

import concurrent.futures
import contextlib
from pathlib import Path

from diffjax import io
from diffjax.errors import UserError

FORMAT = 2  # format 1 has neither manifest nor health, and is read; later formats are refused
MANIFEST = "manifest.json"


def list_steps(directory: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, in ascending order, damaged ones too; [] without a folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = [path.name for path in directory.iterdir() if path.name.isascii() and path.name.isdigit()]
        return sorted(int(name) for name in names if str(int(name)) == name and (directory / name).is_dir())
    return []


def list_files(checkpoint: Path) -> list[Path]:
    """Returns the files of a checkpoint's arrays, sorted. Files at the top level are Orbax's own and are left out."""
    return sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())


def write_manifest(checkpoint: Path) -> None:
    """Writes the manifest of a complete checkpoint into its folder."""
    (checkpoint / MANIFEST).write_text(io.to_json({"format": FORMAT, "sha256": _digests(checkpoint)}, indent=1))


def find_damage(checkpoint: Path) -> str | None:
    """Returns a description of the damage to a checkpoint's files, or None if they are as written.

    Format 1 has no manifest: only the presence of its arrays is checked.

    Raises:
      UserError: the checkpoint has a later format.
    """
    try:
        manifest = io.from_json((checkpoint / MANIFEST).read_bytes())
    except FileNotFoundError:
        is_complete = all((checkpoint / name / "_METADATA").exists() for name in ("variables", "ema", "optimizer"))
        return None if is_complete and not (checkpoint / "health").exists() else f"{MANIFEST} is missing"
    except (ValueError, OSError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    fields = manifest if isinstance(manifest, dict) else {}
    number, expected = fields.get("format"), fields.get("sha256")
    if type(number) is not int:
        return f"{MANIFEST} has no format number"
    if number > FORMAT:
        raise UserError(
            f"{checkpoint}: has checkpoint format {number}, and this version reads formats up to {FORMAT}; use a newer "
            "version"
        )
    if not isinstance(expected, dict):
        return f"{MANIFEST} has no digests of files"
    try:
        actual = _digests(checkpoint)
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    if lost := sorted(expected.keys() - actual.keys()):
        return f"{lost[0]} is missing" + _and_others(lost)
    if changed := sorted(name for name in expected if actual[name] != expected[name]):
        return f"{changed[0]} has changed since it was written" + _and_others(changed)
    return None


def _and_others(names: list[str]) -> str:
    return f", and {len(names) - 1} other files" if len(names) > 1 else ""


def _digests(checkpoint: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file by its path in the checkpoint."""
    files = list_files(checkpoint)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter's lock
        digests = pool.map(io.file_hash, files)
        return {path.relative_to(checkpoint).as_posix(): digest for path, digest in zip(files, digests, strict=True)}
