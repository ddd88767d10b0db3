"""Flags of sampling settings, and the run that they sample, for the verbs that sample a run."""

from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags
from diffjax.errors import UserError
from diffjax.inference.batching import limit_batch_size
from diffjax.inference.overrides import SETTINGS
from diffjax.parsing import entries, number
from diffjax.runs.loading import Run, load
from diffjax.runs.power_functions import check_length


def define_settings(flags: Flags) -> None:
    """Defines the flags of SETTINGS, and of guidance models."""
    for name, setting in SETTINGS.items():
        absl_flags.DEFINE_string(name, None, setting.help, flag_values=flags)
    for name, text in {
        "classifier": "run of a classifier of noised images, for guidance (configs/classifier_digits.py)",
        "weak": "run of a weaker model of the same data, to move away from (autoguidance)",
    }.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)


def load_run(workdir: str, arguments: Arguments, ema_length: float | None) -> Run:
    """Opens a run with the weights that the flags of `define_sampling` select, averaged over `ema_length`.

    `ema_length` is one value of --ema_length, of which a sweep has several. Raises UserError as `load` does.
    """
    return load(
        workdir,
        arguments.checkpoint,
        ema_length=ema_length,
        data_dir=arguments.data_dir,
        weights_dtype=arguments.weights_dtype,
    )


def note_batch_size(arguments: Arguments, total: int) -> None:
    """Prints a note if the batch size for `total` samples is not the value of --batch_size."""
    limit_batch_size(arguments.batch_size, total, is_given="batch_size" in arguments.given_flags)


def parse_lengths(name: str, text: str) -> list[float]:
    """Returns the relative lengths of averages in a flag's value. Raises UserError for one out of range."""
    try:
        return [check_length(f"--{name}", number(entry)) for entry in entries(name, text)]
    except ValueError as error:
        raise UserError(f"--{name}={text}: must be numbers, separated by commas") from error
