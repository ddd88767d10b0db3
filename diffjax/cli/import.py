"""Import published weights, as a run on which every verb works, from a folder or file of another library.

  python launch.py import --source=DIR|hub:OWNER/NAME --workdir=runs/sd15
  python launch.py import --source=FILE --config=configs/published/adm.py:64 --workdir=runs/adm64
  python launch.py train --config=runs/sd15/config.json --config.train.start=runs/sd15 --config.data.dir=IMAGES \\
      --config.train.steps=2000 --config.train.warmup_steps=100 --workdir=runs/mine

A folder of diffusers or transformers has its own config. A single file does not: --config names a file of
configs/published, whose header names the file and its release. hub:OWNER/NAME[/PATH][@REVISION]
downloads a repository, or a folder or a file in it, with huggingface_hub (pip install 'diffjax[hf]') into its cache.

The run has config.json, weights.safetensors and, for models of captions, tokenizer.json; parts of it, such as an
autoencoder, are subfolders. source.json records the source and the SHA-256 of its files. Options that diffjax does not
have are refused by their names. docs/published.md lists what can be imported. The last command fine-tunes the run on a
folder of images of your own (docs/data.md).
"""

from pathlib import Path

from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags, define_config, define_workdir, read_config, required
from diffjax.cli.next_commands import next_commands
from diffjax.conversion.importing import import_run
from diffjax.runs.new_folder import new_folder


def define(flags: Flags) -> None:
    absl_flags.DEFINE_string(
        "source", None, "folder or file of published weights, or hub:OWNER/NAME[/PATH][@REVISION]", flag_values=flags
    )
    define_workdir(flags)
    define_config(flags)


def run(arguments: Arguments) -> int:
    source, workdir = required(arguments, "source"), Path(required(arguments, "workdir"))
    config = read_config(arguments) if arguments.config or arguments.overrides else None
    with new_folder(workdir, flag="workdir") as folder:
        model = import_run(source, folder, config)
    print(f"imported to {workdir}; try next:")
    trained = workdir if model.losses else workdir / "decoder"  # a pipeline itself is not trained
    fine_tuning = f"train --config={trained}/config.json --config.train.start={trained} --config.data.dir=IMAGES"
    for line in (*next_commands(model, str(workdir)), f"{fine_tuning} --workdir=NEW"):
        print(f"  python launch.py {line}")
    return 0
