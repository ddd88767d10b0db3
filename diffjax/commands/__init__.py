"""The verbs of launch.py, one module each: `define(flags)` declares its flags, `run(arguments)` gives an exit code."""

import logging
import sys
import warnings
from collections.abc import Sequence

from absl import flags as absl_flags

from diffjax.commands import benchmark, evaluate, export, replay, reproduce, sample, sweep, train
from diffjax.commands.flags import help_text, missing_field, parse
from diffjax.errors import UserError, unknown

VERBS = {
    "train": train,
    "sample": sample,
    "sweep": sweep,
    "evaluate": evaluate,
    "reproduce": reproduce,
    "benchmark": benchmark,
    "export": export,
    "replay": replay,
}


def main(argv: Sequence[str]) -> int:
    """Runs `launch.py VERB --flags`. Bad input is one line on standard error and exit code 2."""
    _quiet_libraries()
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if len(argv) > 1 else 2
    try:
        if argv[1] not in VERBS:
            raise unknown("verb", argv[1], VERBS)
        verb = VERBS[argv[1]]
        flags = absl_flags.FlagValues()
        verb.define(flags)
        if {"-h", "--help", "-help"} & set(argv[2:]):
            print(help_text(argv[1], verb.__doc__, flags))
            return 0
        return verb.run(parse(flags, argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except (AttributeError, KeyError) as error:
        if (missing := missing_field(error)) is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
    except OSError as error:  # a full disk, a folder that may not be written, a file that is not there
        print(f"error: {error}", file=sys.stderr)
    return 2


def _overview() -> str:
    verbs = "\n".join(f"  {name:10} {module.__doc__.splitlines()[0]}" for name, module in VERBS.items())
    return f"""diffjax: scalable diffusion in JAX

usage: python launch.py VERB --flag=value ...

verbs:
{verbs}

python launch.py VERB --help lists a verb's flags. Start with:
  python launch.py train --config=configs/digits.py --workdir=runs/digits"""


def _quiet_libraries() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="orbax|grain|tensorflow_datasets")
