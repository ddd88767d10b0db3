"""Published CLIPs as runs."""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.conversion.components import ImportedRun
from diffjax.errors import UserError


def read_clip(folder: Path, *, tokenizer: Path | None = None) -> ImportedRun:
    """Returns the run of a folder of transformers: CLIPModel, CLIPTextModel, ..."""
    raise UserError(f"{folder}: CLIP is not supported")


def read_single_file(path: Path, config: ConfigDict, tensors) -> ImportedRun:
    """Returns the run of the text encoder in a file of Stable Diffusion, tensors below cond_stage_model."""
    raise UserError(f"{path}: CLIP is not supported")
