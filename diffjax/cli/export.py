"""Export a run's weights: a folder that every verb except train accepts instead of the run.

  python launch.py export --workdir=runs/digits --out=exported/digits [--checkpoint=2000]
                          [--ema_length=0.1] [--merge_lora] [--dtype=float16]

The folder has config.json, tokenizer.json (for text-conditioned runs) and weights.safetensors: the averaged parameters
and other state of the model, such as a codebook. Parts of the run become subfolders. What only training needs is left
out: the optimizer state, a teacher, the discriminator of a GAN. So training cannot resume from an export.
--dtype=float16 or bfloat16 stores weights in half of the size; models compute with them in float32. If the export
fails, for instance on a full disk, it leaves no folder.

Of a LoRA run, weights.safetensors has the LoRA alone, and base.safetensors the weights that it adapts. The LoRA is also
written in the format of peft, as adapter_model.safetensors and adapter_config.json. --merge_lora adds the LoRA to the
weights, so that the export is an ordinary one.

--format=diffusers writes a folder of the library diffusers instead, for `from_pretrained`: diffusion models on pixels
and latents with a U-Net, and autoencoders with model.architecture=ldm or taesd; of a CLIP it writes a folder of
transformers. What these libraries do not have is refused by the name of the config field.

--format=safetensors writes the run of a published config (configs/published) as model.safetensors, with the names of
tensors that its family has, and config.json. `import --source=OUT/model.safetensors --config=OUT/config.json` reads it.
Networks that are published in two files are written as two, and `import --source=OUT` reads them.
"""

import shutil
from pathlib import Path

from absl import flags as absl_flags
from ml_collections import ConfigDict

from diffjax import io
from diffjax.cli.flags import Arguments, Flags, define_ema_length, define_workdir, required
from diffjax.conversion.exporting import export_diffusers
from diffjax.conversion.single_file import write_files
from diffjax.errors import UserError
from diffjax.models.capabilities import is_text_conditioned
from diffjax.runs import exported_weights
from diffjax.runs.dependencies import part_names
from diffjax.runs.loading import load
from diffjax.runs.new_folder import new_folder
from diffjax.runs.workdir import Workdir


def define(flags: Flags) -> None:
    define_workdir(flags)
    absl_flags.DEFINE_string("out", None, "new folder to write", flag_values=flags)
    absl_flags.DEFINE_integer(
        "checkpoint", None, "training step of the checkpoint (default: the last)", flag_values=flags
    )
    absl_flags.DEFINE_boolean(
        "merge_lora", False, "add the updates of a LoRA run to the weights that it adapts", flag_values=flags
    )
    absl_flags.DEFINE_enum(
        "format", "diffjax", ("diffjax", "diffusers", "safetensors"), "files to write, see above", flag_values=flags
    )
    absl_flags.DEFINE_enum(
        "dtype", "float32", ("float32", *exported_weights.HALF_TYPES), "type of the stored weights", flag_values=flags
    )
    define_ema_length(flags)


def run(arguments: Arguments) -> int:
    source, out = Path(required(arguments, "workdir")), Path(required(arguments, "out"))
    if arguments.format != "diffjax" and arguments.dtype != "float32":
        raise UserError(f"--dtype={arguments.dtype}: is only supported for --format=diffjax; remove one of the flags")
    if arguments.format == "diffusers":
        run = load(source, arguments.checkpoint, ema_length=arguments.ema_length)
        with new_folder(out) as folder:
            name = export_diffusers(run, folder)
        loaded = f'{out}", subfolder="unet' if name == "UNet2DModel" else out
        library = "transformers" if run.config.system == "clip" else "diffusers"
        print(f'exported to {out}; load it with:\n  {library}.{name}.from_pretrained("{loaded}")')
        return 0
    if arguments.format == "safetensors":
        run = load(source, arguments.checkpoint, ema_length=arguments.ema_length)
        with new_folder(out) as folder:
            files = write_files(run, folder)
            Workdir(folder).write_config(run.config)
        written = " and ".join(f"{out}/{name}" for name in files)
        print(f"exported to {written}, with the names of published.naming={run.config.published.naming}")
        return 0
    with new_folder(out) as folder:
        _export(
            source,
            Workdir(folder),
            arguments.checkpoint,
            merge_lora=arguments.merge_lora,
            length=arguments.ema_length,
            dtype=arguments.dtype,
        )
    print(f"exported to {out}; try next:\n  python launch.py sample --workdir={out} --out=samples.png")
    return 0


def _export(
    source: Path,
    out: Workdir,
    step: int | None,
    *,
    merge_lora: bool = False,
    length: float | None = None,
    dtype: str = "float32",
) -> None:
    run = load(source, step, ema_length=length)
    if merge_lora and not run.lora:
        raise UserError(f"--merge_lora: requires a LoRA run, and {source} has train.lora.rank=0; remove the flag")
    if dtype != "float32" and run.lora and not merge_lora:
        raise UserError(f"--dtype={dtype}: requires --merge_lora for a LoRA run; add it, or remove --dtype")
    out.create()
    for name in part_names(run.config, for_sampling=True):
        if not name.isidentifier():  # "..", or a path, would be outside the folder
            raise UserError(f"parts.{name} of {source}: the name of a part must be an identifier; rename it")
        _export(source / name, Workdir(out.path / name), None, dtype=dtype)
    if is_text_conditioned(run.system):
        _copy_within(run.workdir.tokenizer, out.tokenizer)
    if run.system.losses:  # a pipeline does not have weights of its own
        omitted = {"frozen", *run.system.training_only}
        variables = {name: tree for name, tree in run.variables.items() if name not in omitted}
        variables["params"] = {name: tree for name, tree in variables["params"].items() if name not in omitted}
        if run.lora and not merge_lora:
            adapter, matrices = run.lora
            variables["params"] = matrices
            _copy_within(run.workdir.base, out.base)
            tensors, fields = adapter.to_peft(matrices)
            exported_weights.save(out.adapter, tensors, run.step)
            io.write_json(out.adapter_config, fields)
        if dtype != "float32":
            variables = exported_weights.half_precision(variables, dtype)
        exported_weights.save(out.weights, variables, run.step)
    if run.workdir.config_changes.exists():
        shutil.copyfile(run.workdir.config_changes, out.config_changes)
    config = run.config
    if merge_lora:
        config = ConfigDict(config.to_dict())
        config.train.lora.rank = 0
    out.write_config(config)


def _copy_within(file: Path, target: Path) -> None:
    """Copies a file of a run. Raises UserError for a symbolic link to a file outside of the run."""
    if not file.resolve().is_relative_to(file.parent.resolve()):
        raise UserError(f"{file} is a symbolic link out of its run; replace it with a copy of its target")
    shutil.copyfile(file, target)
