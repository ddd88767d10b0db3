"""Export a run as its weights alone: a folder that every verb but train takes in the place of the run.

  python launch.py export --workdir=runs/digits --out=exported/digits [--checkpoint=2000]

The folder has config.json, tokenizer.json of a run that reads text, and weights.safetensors: the averaged parameters
that samples are drawn with, and what else the system keeps, such as a codebook. The parts of a run become folders in
it. The optimiser's state is left out, so training does not go on from it.
"""

import shutil
from pathlib import Path

from absl import flags as absl_flags

from diffjax.commands.flags import Arguments, Flags, define_workdir, required
from diffjax.config import part_names
from diffjax.errors import UserError
from diffjax.run import load
from diffjax.train import weights
from diffjax.workdir import Workdir


def define(flags: Flags) -> None:
    define_workdir(flags)
    absl_flags.DEFINE_string("out", None, "folder to write, a new one", flag_values=flags)
    absl_flags.DEFINE_integer("checkpoint", None, "step of the checkpoint (default: the last)", flag_values=flags)


def run(arguments: Arguments) -> int:
    source, out = Path(required(arguments, "workdir")), Workdir(required(arguments, "out"))
    if out.path.exists() and any(out.path.iterdir()):
        raise UserError(f"--out={out.path} is not empty: choose a new folder")
    _export(source, out, arguments.checkpoint)
    print(f"exported to {out.path}; try next:\n  python launch.py sample --workdir={out.path} --out=samples.png")
    return 0


def _export(source: Path, out: Workdir, step: int | None) -> None:
    run = load(source, step)
    out.create()
    for name in part_names(run.config):
        _export(source / name, Workdir(out.path / name), None)
    if run.system.text:
        shutil.copyfile(run.workdir.tokenizer, out.tokenizer)
    if run.system.objective.losses:  # a chain has no weights of its own
        weights.save(out.weights, {name: tree for name, tree in run.variables.items() if name != "frozen"}, run.step)
    if run.workdir.config_changes.exists():
        shutil.copyfile(run.workdir.config_changes, out.config_changes)
    out.write_config(run.config)
