"""Sample pairs of noise and image from a trained run, to train a straighter flow on them (reflow).

  python launch.py pairs --workdir=runs/flow --num=50000 --out=pairs/digits [--sampler=heun --steps=50 --guidance=2]
  python launch.py train --config=configs/few_step_digits.py:flow --workdir=runs/reflow \\
                         --config.data.name=pairs --config.data.dir=pairs/digits

Pair i is sample i of launch.py sample and its initial noise, as float32: pixels before rounding, or latents. The
classes alternate. The sampler must add no noise. Guidance is distilled into the model that is trained on the pairs.

The run is a diffusion model that is unconditional or conditioned on class labels. The folder appears when it is
complete. docs/diffusion.md explains reflow.
"""

from pathlib import Path

from absl import flags as absl_flags

from diffjax.cli.flags import GUIDANCE_FLAGS, MAX_COUNT, Arguments, Flags, define_sampling, define_workdir, required
from diffjax.cli.settings import load_run
from diffjax.inference.noise_pairs import check_run, write_pairs
from diffjax.inference.overrides import SETTINGS, SettingsFactory, single_setting
from diffjax.runs.new_folder import new_folder

# Settings of samplers of diffusion models.
_SETTINGS = (
    *("sampler", "grid", "steps", "eta", "threshold"),
    *GUIDANCE_FLAGS,
    *("perturbation", "perturbed_scale"),
)


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags)
    for name in _SETTINGS:
        absl_flags.DEFINE_string(name, None, SETTINGS[name].help, flag_values=flags)
    absl_flags.DEFINE_integer("num", 10_000, "number of pairs", 1, MAX_COUNT, flag_values=flags)
    absl_flags.DEFINE_string("out", None, "new folder to write", flag_values=flags)


def run(arguments: Arguments) -> int:
    path, out = required(arguments, "workdir"), Path(required(arguments, "out"))
    trained = load_run(path, arguments, arguments.ema_length)
    model, overrides = check_run(trained), single_setting(arguments.as_dict())
    settings = SettingsFactory(model, trained.config.sampler)(**overrides)
    with new_folder(out) as folder:
        index = write_pairs(
            trained,
            settings,
            folder,
            num=arguments.num,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            sampling={**trained.config.sampler.to_dict(), **overrides, "seed": arguments.seed},
        )
    size = sum(shard["bytes"] for split in index.splits.values() for shard in split["shards"])
    print(f"sampled {arguments.num:,} pairs of step {trained.step} to {out} ({size / 2**20:,.1f} MiB); try next:")
    codec = f" --config.codec={index.codec['workdir']}" if index.codec else ""
    print(
        f"  python launch.py train --config={trained.workdir.config}{codec} --config.data.name=pairs "
        f"--config.data.dir={out} --workdir=RUN"
    )
    return 0
