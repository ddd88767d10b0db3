"""Encode a data set with a trained autoencoder, once, to train latent diffusion on the stored latents.

  python launch.py encode --workdir=runs/kl --out=latents/digits [--config=configs/mine.py] [--split=train,test]
  python launch.py train --config=configs/mine.py --config.codec=runs/kl --config.data.name=latents \\
                         --config.data.dir=latents/digits --workdir=runs/mine

--config is the config of the latent diffusion model (default: the autoencoder's own). Its section `data` is encoded,
and with data.flip also the mirror image of every image. --text_states stores the states of the captions too, of the
frozen CLIP that the config is conditioned on (`conditions.clip_text`).

Training gives the same losses as with images, which the training step encodes, up to rounding. The latents are float32
in array_record shards. The folder appears when it is complete. docs/autoencoders.md has its files.
"""

from pathlib import Path

from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags, define_config, define_workdir, read_config, required
from diffjax.inference.latent_encoding import encode
from diffjax.parsing import entries
from diffjax.runs.new_folder import new_folder
from diffjax.runs.workdir import Workdir


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_config(flags)
    absl_flags.DEFINE_string(
        "split",
        None,
        "splits to encode, separated by commas (default: data.split, and the held-out one if it exists)",
        flag_values=flags,
    )
    absl_flags.DEFINE_boolean("text_states", False, "also store CLIP's states of the captions", flag_values=flags)
    absl_flags.DEFINE_integer("batch_size", 100, "images per batch", 1, 2**31 - 1, flag_values=flags)
    absl_flags.DEFINE_string("out", None, "new folder to write", flag_values=flags)


def run(arguments: Arguments) -> int:
    workdir, out = required(arguments, "workdir"), Path(required(arguments, "out"))
    config = read_config(arguments, Workdir(workdir).read_config())
    with new_folder(out) as folder:
        index = encode(
            config,
            workdir,
            folder,
            splits=entries("split", arguments.split) if arguments.split else None,
            text_states=arguments.text_states,
            batch_size=arguments.batch_size,
        )
    counts = ", ".join(f"{split['examples']:,} of {name}" for name, split in index.splits.items())
    size = sum(shard["bytes"] for split in index.splits.values() for shard in split["shards"])
    print(f"encoded {counts} to {out} ({size / 2**20:,.1f} MiB); try next:")
    config_file = arguments.config or "CONFIG"
    print(
        f"  python launch.py train --config={config_file} --config.codec={workdir} --config.data.name=latents "
        f"--config.data.dir={out}{' --config.data.flip=True' * index.has_mirrored} --workdir=RUN"
    )
    return 0
