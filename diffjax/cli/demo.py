"""Open a web page that samples trained runs: images, sweeps, trajectories, edits, comparisons.

  python launch.py demo [--workdir=runs/digits,runs/other] [--port=7860]

The page samples with the flags of `launch.py sample`, shows the command that samples the same images, and stores the
settings in the PNG files that it saves. Ctrl-C ends it. Without --workdir it opens the released models.

It requires gradio: pip install 'diffjax[demo]'. The page is served on this machine alone; --host=0.0.0.0 serves it on
the network, and --share through a public address of gradio. Whoever opens the page can use the device.
"""

import importlib
import threading

from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags
from diffjax.cli.sample import parse_flags
from diffjax.errors import UserError
from diffjax.parsing import entries
from diffjax.runs import pretrained


def define(flags: Flags) -> None:
    absl_flags.DEFINE_string(
        "workdir", None, "folders of runs, separated by commas (default: the released models)", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "host", "127.0.0.1", "address to serve on; 0.0.0.0: the network can open the page", flag_values=flags
    )
    absl_flags.DEFINE_integer("port", 7860, "port to serve on; 0: a free one", 0, 65_535, flag_values=flags)
    absl_flags.DEFINE_boolean("share", False, "serve through a public address of gradio as well", flag_values=flags)


def run(arguments: Arguments) -> int:
    released = [f"{pretrained.PREFIX}{name}" for name in pretrained.names()]
    workdirs = entries("workdir", arguments.workdir) if arguments.workdir else released
    try:
        importlib.import_module("gradio")
    except ImportError as error:
        raise UserError(f"demo: requires gradio ({error}); install it with `pip install 'diffjax[demo]'`") from error
    from diffjax.demo import app  # imports gradio
    from diffjax.demo.engine import Engine

    print(f"loading {', '.join(workdirs)} ...")
    engine = Engine(workdirs, parse_flags)
    options = {"host": arguments.host, "port": arguments.port or None, "share": arguments.share}
    with app.serving(engine, **options) as address:
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    return 0
