"""Imports published weights: writes a run as `export` does, with a record of its source."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax import io
from diffjax.conversion import hub, source_files
from diffjax.conversion.components import ImportedRun
from diffjax.conversion.diffusers_folder import read_folder
from diffjax.conversion.file_tables import part_files
from diffjax.conversion.single_file import read_file
from diffjax.errors import UserError
from diffjax.models.base import Model
from diffjax.models.parameter_paths import flatten
from diffjax.published import table
from diffjax.runs import exported_weights
from diffjax.runs.dependencies import part_config
from diffjax.runs.loading import build_model
from diffjax.runs.workdir import Workdir


def import_run(source: str, out: Path, config: ConfigDict | None = None) -> Model:
    """Writes the run of published weights, and a record of its source.

    source.json has "source", "sha256" of each file that was read, and of a repository its name and the hash of its
    commit, "repository" and "revision".

    Args:
      source: folder or file, or hub:OWNER/NAME[/PATH][@REVISION] for a repository of the Hugging Face Hub.
      out: folder of the run, which must exist.
      config: config of a file, or of a network in two files of a folder; folders of other libraries have their own.

    Returns:
      The model of the run.

    Raises:
      UserError: the source cannot be read, or does not fit a model of ours.
    """
    path, parts = Path(source), None if config is None else part_files(config)
    record: dict[str, Any] = {"source": source}
    if source.startswith(hub.PREFIX):
        path, record["repository"], record["revision"] = hub.download(source, parts)
    if not path.exists():
        raise UserError(f"--source={source}: does not exist; name a folder, a file or hub:OWNER/NAME")
    if path.is_file():
        source_files.check_config(source, config is not None)
    elif parts == () and any((path / name).exists() for name in hub.MODELS):
        raise UserError(f"--config: --source={source} is a folder, which has its own config; remove the flag")
    run = read_file(path, config) if config else read_folder(path)
    model = _write(run, Workdir(out), _with_parts(run))
    files = source_files.files_of(path, parts)
    for folder in run.siblings:
        files |= {f"../{folder.name}/{name}": file for name, file in source_files.files_of(folder, None).items()}
    record["sha256"] = {name: io.file_hash(file) for name, file in files.items()}
    io.write_json(out / "source.json", record)
    return model


def _with_parts(run: ImportedRun) -> ConfigDict:
    """Returns the config of a run with those of its parts.

    It has no discriminator: published files have none, or another one.
    """
    config = ConfigDict(run.config.to_dict())
    for section, name in ((config, "adversarial"), (config.get("train", {}), "discriminator")):
        if name in section:
            del section[name]
    if run.parts:
        config.parts = ConfigDict({name: _with_parts(part).to_dict() for name, part in run.parts.items()})
    return config


def _write(run: ImportedRun, workdir: Workdir, config: ConfigDict) -> Model:
    """Writes a run, after its parts."""
    workdir.create()
    for name, part in run.parts.items():
        _write(part, Workdir(workdir.path / name), ConfigDict(part_config(config, name).to_dict()))
    workdir.write_config(config)
    if run.tokenizer:
        run.tokenizer.save(workdir.tokenizer)
    model = build_model(config, workdir.path, abstract=True)  # the weights of parts may be large
    if not model.losses:
        return model
    shapes = dict(sorted(flatten(model.variable_shapes).items()))
    leaves = table.iterate(
        run.table,
        shapes,
        run.tensors,
        network=f"{run.source} is not the {type(model).__name__} of its config",
        ignored=run.ignored,
    )
    exported_weights.save_leaves(workdir.weights, shapes, leaves, 0)
    return model
