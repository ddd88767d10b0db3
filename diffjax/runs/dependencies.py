"""The runs that a run depends on: parts of its config, which are trained before it, and other runs that fields name.

A config may have a section `parts`: configs of runs that it depends on, by name. They are trained before it, into
folders of its workdir. A field such as `codec` refers to a part by `@name`, or to any run by the path of its folder. A
part may refer to its siblings, the other parts of the same config.
"""

from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from diffjax import io
from diffjax.errors import UserError
from diffjax.runs.config_files import flatten, training_fields

TRAINING_ONLY = ("teacher", "alignment.clip", "train.start")  # fields that name runs which samples do not need


def part_names(config: ConfigDict, *, for_sampling: bool = False) -> list[str]:
    """Returns the parts to train, each after the parts that it refers to.

    Only parts that a field of the config refers to, directly or through other parts, are returned.

    Args:
      config: config of a run.
      for_sampling: leave out the parts that only training needs, such as a teacher.

    Raises:
      UserError: parts refer to one another in a circle.
    """
    omitted = TRAINING_ONLY if for_sampling else ()
    remaining, ordered = _needed(config, _references(config, omitted), omitted), []
    while remaining:
        ready = [name for name, needs in remaining.items() if not remaining.keys() & needs]
        if not ready:
            raise UserError(
                f"parts.{', parts.'.join(remaining)}: refer to one another in a circle, so none can be trained first; "
                "remove one of the references"
            )
        ordered += sorted(ready)
        remaining = {name: needs for name, needs in remaining.items() if name not in ready}
    return ordered


def part_config(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the config of a part, with `data.dir` and `parallel` of the whole config.

    Where the config names another run in the place of a part, the part's siblings use that run too.
    """
    part = ConfigDict(config.parts[name].copy_and_resolve_references()).unlock()
    part.data.dir, part.parallel = config.data.dir, config.parallel
    for field, value in part.items():
        if isinstance(value, str) and value.startswith("@") and value[1:] not in part.get("parts", {}):
            substitute = config.get(value[1:]) or "@"
            part[field] = value if substitute.startswith("@") else substitute
    return part.lock()


def standalone_part(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the config of a part as a run of its own: the siblings that it depends on become its parts."""
    part = part_config(config, name)
    if siblings := {other: part_config(config, other) for other in _needed(config, _sibling_references(part))}:
        with part.unlocked():
            part.parts = ConfigDict({**part.get("parts", {}), **siblings})
    return part


def referenced_run(config: ConfigDict, field: str, workdir: Path | None) -> Path:
    """Returns the folder of the run that a field refers to.

    Args:
      field: dotted name of the field. Its value is a folder, or `@name`: a part of the config, or a sibling.
      workdir: folder of the config's run; None: it has none, so that `@name` cannot be resolved.

    Raises:
      UserError: the value names no run.
    """
    value = flatten(config)[field]
    if not value.startswith("@"):
        return Path(value)
    if value == "@":
        raise UserError(f"{field}=@: must name a part, as in @name, or the folder of a run; add the name")
    if workdir is None:
        raise UserError(
            f"{field}={value}: is trained with the run, which needs a trained part here; pass the folder of a trained "
            f"one, --config.{field}=RUN"
        )
    return (workdir if value[1:] in config.get("parts", {}) else workdir.parent) / value[1:]


def training_hash(config: ConfigDict) -> str:
    """Returns a short hash of all that determines the trained parameters, parts included."""
    parts = {f"parts.{name}": training_hash(part_config(config, name)) for name in part_names(config)}
    fields = {**training_fields(config), "train.steps": config.get("train", {}).get("steps", 0), **parts}
    return io.short_hash(io.to_json(fields, sort_keys=True))


def _references(config: ConfigDict, omitted: Collection[str] = ()) -> set[str]:
    """Returns the names that fields outside of `parts` refer to, without those of `omitted` fields."""
    return {
        value[1:]
        for field, value in flatten(config).items()
        if isinstance(value, str) and value.startswith("@") and not field.startswith("parts.") and field not in omitted
    }


def _sibling_references(part: ConfigDict, omitted: Collection[str] = ()) -> set[str]:
    """Returns the names that a part refers to and that are not its own parts."""
    return _references(part, omitted) - set(part.get("parts", {}))


def _needed(config: ConfigDict, names: set[str], omitted: Collection[str] = ()) -> dict[str, set[str]]:
    """Returns the parts among `names` and all parts that these depend on, each with the siblings that it refers to."""
    parts, needed = set(config.get("parts", {})), {}
    remaining = names & parts
    while remaining:
        name = remaining.pop()
        needed[name] = _sibling_references(part_config(config, name), omitted) & parts
        remaining |= needed[name] - needed.keys()
    return dict(sorted(needed.items()))
