"""Repositories of the Hugging Face Hub, downloaded into its cache: hub:OWNER/NAME[/PATH][@REVISION]."""

import contextlib
import errno
import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from diffjax.conversion import source_files
from diffjax.errors import UserError, excerpt

PREFIX = "hub:"
MODELS = ("model_index.json", "config.json")  # files that a folder of a model has
_SOURCE = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:/([^@]+?))?/?(?:@(.+))?", re.ASCII)


class Snapshot(NamedTuple):
    """A downloaded repository.

    Attributes:
      path: its folder in the cache, or the folder or the file in it that was named.
      repository: OWNER/NAME.
      revision: hash of the commit.
    """

    path: Path
    repository: str
    revision: str


def download(source: str, parts: Sequence[str] | None) -> Snapshot:
    """Downloads the files of a repository that an import reads, unless they are in the cache.

    Args:
      source: "hub:OWNER/NAME", with "/PATH" for a folder or a file in it, and "@REVISION" for a branch, a tag or a
        commit; "main" is the default.
      parts: of an import with a config, the names of the files in a folder; empty if the source is a file. None: of an
        import without a config, which a folder has.

    Raises:
      UserError: the source is invalid, huggingface_hub is not installed, the repository does not exist or is not
        accessible, the Hub cannot be reached and the cache does not have the files, or the disk is full.
    """
    match = _SOURCE.fullmatch(source)
    if not match:
        raise UserError(f"--source={excerpt(source)}: must be hub:OWNER/NAME, hub:OWNER/NAME/FILE or ...@REVISION")
    name, inside, revision = match[1], match[2] or "", match[3] or "main"
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(f"--source={source}: requires huggingface_hub: pip install 'diffjax[hf]'") from error
    start = f"{inside}/" if inside else ""
    with _reported(source, name, revision):
        try:
            listed = huggingface_hub.HfApi().model_info(name, revision=revision).siblings or []
            names = [file.rfilename for file in listed]
        except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
            names = None
        except errors.HfHubHTTPError:
            raise
        except Exception:  # of the HTTP library, whose names depend on the version of huggingface_hub
            names = None
        known = [start + file for file in (*MODELS, *(parts or ()))] + [inside]
        if names is None:  # offline: without patterns, huggingface_hub requires the whole repository
            folder = huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=known, local_files_only=True
            )
            names = [file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file()]
            _select(source, inside, names, parts)
        else:
            patterns = [glob.escape(file) for file in _select(source, inside, names, parts)]
            folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
    return Snapshot(Path(folder) / inside, name, Path(folder).name)


def _select(source: str, inside: str, names: Sequence[str], parts: Sequence[str] | None) -> list[str]:
    """Returns the files to download: a file, or those of a folder that an import reads.

    Raises:
      UserError: the repository does not have the file or the folder, or the folder is not a model.
    """
    if inside in names:
        source_files.check_config(source, parts is not None)
        return [inside]
    start = f"{inside}/" if inside else ""
    in_folder = [name.removeprefix(start) for name in names if name.startswith(start)]
    if selected := [start + name for name in in_folder if name in (parts or ())]:
        return selected
    if parts is None and any(name in in_folder for name in MODELS):
        return [start + name for name in source_files.select(in_folder)]
    wanted = MODELS if parts is None else parts or ["the file that the header of --config names"]
    files = [name for name in names if name.endswith((".safetensors", ".ckpt", ".pt", ".pth", ".bin"))]
    listed = f"; name a file of it: {', '.join(files[:5])}" if files and not parts else ""
    raise UserError(f"--source={source}: does not have {' or '.join(wanted)}{listed}")


@contextlib.contextmanager
def _reported(source: str, name: str, revision: str) -> Iterator[None]:
    """Raises UserError in the place of errors of huggingface_hub."""
    from huggingface_hub import constants, errors

    start, cache = f"--source={source}:", constants.HF_HUB_CACHE
    try:
        yield
    except UserError:
        raise
    except errors.HFValidationError as error:
        raise UserError(f"{start} {name} is not the name of a repository; check it") from error
    except errors.GatedRepoError as error:
        advice = f"accept its terms at {constants.ENDPOINT}/{name}, and set HF_TOKEN to your token"
        raise UserError(f"{start} is gated; {advice}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{start} does not exist, or is private; check the name, or set HF_TOKEN to a token") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{start} has no revision {excerpt(revision)}; check it") from error
    except errors.LocalEntryNotFoundError as error:
        advice = "connect to it, or copy the cache of a machine that downloaded it, and set HF_HOME"
        raise UserError(
            f"{start} is not complete in the cache {cache}, and the Hub cannot be reached; {advice}"
        ) from error
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", "an error")
        advice = "check your token, HF_TOKEN" if code in (401, 403) else "try again later"
        raise UserError(f"{start} the Hub answers {code}; {advice}") from error
    except Exception as error:  # of the HTTP library or the disk
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{start} no space in {cache}; free space, or set HF_HOME to another folder") from error
        reason = excerpt(str(error)) or type(error).__name__
        raise UserError(f"{start} cannot be downloaded to {cache}: {reason}") from error
