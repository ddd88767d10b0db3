"""Flags and messages of metrics, of the results store and of CSV tables, for the verbs that use them."""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags, check_writable
from diffjax.evaluation.results_store import ResultsStore, write_csv


def define_csv(flags: Flags) -> None:
    absl_flags.DEFINE_string("csv", None, "file to write the table to, as CSV", flag_values=flags)


def define_recompute(flags: Flags, things: str) -> None:
    absl_flags.DEFINE_boolean(
        "recompute", False, f"compute {things} that are in the run's results already", flag_values=flags
    )


def define_feature_networks(flags: Flags) -> None:
    absl_flags.DEFINE_string("inception", None, "weights file of FID's InceptionV3", flag_values=flags)
    absl_flags.DEFINE_string("dinov2", None, "folder of a published DINOv2, for FD-DINOv2", flag_values=flags)
    absl_flags.DEFINE_string("features", None, "run of a classifier, for FD-classifier", flag_values=flags)


def define_reference(flags: Flags) -> None:
    text = "real images to compare samples with: a split, or an .npz file of images or statistics (default: training)"
    absl_flags.DEFINE_string("reference", None, text, flag_values=flags)


def weight_paths(arguments: Arguments) -> dict[str, str | None]:
    """Returns the paths of the flags of `define_feature_networks`, by network."""
    return {"inception": arguments.inception, "dinov2": arguments.dinov2, "classifier": arguments.features}


def define_clip(flags: Flags) -> None:
    text = "run or folder of a CLIP, for metrics that require one (default: the CLIP trained with the run)"
    absl_flags.DEFINE_string("clip", None, text, flag_values=flags)


def check_output(arguments: Arguments, results: ResultsStore) -> None:
    """Raises UserError if the store or the CSV file cannot be written."""
    check_writable("workdir", results.path)
    if arguments.csv:
        check_writable("csv", Path(arguments.csv))


def write_table(arguments: Arguments, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows to the file of --csv, if it is set, and prints its path."""
    if arguments.csv and rows:
        write_csv(arguments.csv, rows)
        print(arguments.csv)


def report_unwritten(results: ResultsStore) -> int:
    """Returns 0; or 2, with one line on standard error, if a file could not be written."""
    if results.unwritten:
        results.write()
    paths = [*results.failed, *([results.path] if results.unwritten else [])]
    if not paths:
        return 0
    names = ", ".join(map(str, paths))
    print(f"error: {names}: cannot be written; free space and run this again", file=sys.stderr)
    return 2


def signal_of(interruption: KeyboardInterrupt) -> int:
    """Returns the number of the signal that raised an exception."""
    return interruption.args[0] if interruption.args else signal.SIGINT
