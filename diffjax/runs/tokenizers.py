"""The tokenizers of runs, and of published weights."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

from diffjax.data import tokenizer
from diffjax.data.tokenizer import Tokenizer
from diffjax.errors import UserError
from diffjax.nn.pretrained import clip_checkpoint
from diffjax.runs.workdir import Workdir


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Reads the tokenizer of a run, or of a folder of published weights.

    Raises:
      UserError: the folder has no tokenizer.
    """
    return tokenizer.load(path if clip_checkpoint.is_published(Path(path)) else Workdir(path).tokenizer)


def check_same_tokenizer(paths: Mapping[str, Path]) -> None:
    """Checks that the runs of a pipeline share one tokenizer.

    Args:
      paths: folders of the runs, by the config field that names them.

    Raises:
      UserError: two runs have different tokenizers.
    """
    if len(paths) < 2:  # reads no file without need
        return
    tokenizers = {name: load_tokenizer(path) for name, path in paths.items()}
    for name, other in itertools.pairwise(tokenizers):
        if tokenizers[name].bpe.to_str() != tokenizers[other].bpe.to_str():
            raise UserError(
                f"{name}={paths[name]} and {other}={paths[other]}: have different tokenizers, of "
                f"{tokenizers[name].vocabulary} and {tokenizers[other].vocabulary} tokens; train both with the same one"
            )
