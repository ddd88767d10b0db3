"""Releases a trained run as a model of the package, and lists the files of released models on their cards.

python docs/pretrained.py NAME RUN [CLIP]   # copies a run, and the run of a CLIP that ranks its samples
python docs/pretrained.py                   # writes the section "Files" of every card: sizes and SHA-256
"""

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from diffjax import cli, io
from diffjax.runs import pretrained

_HEADING = "## Files\n"


def release(name: str, run: str, clip: str = "") -> None:
    """Copies a run to the released models, with weights in float16 and without folders of this machine.

    Args:
      name: name of the released model.
      run: folder of the run.
      clip: folder of the run of a CLIP, which becomes a part; "": none.
    """
    target = pretrained.FOLDER / name
    _export(run, target)
    config = io.read_json(target / "config.json", "export the run again")
    if clip:
        _export(clip, target / "clip")
        part = io.read_json(target / "clip" / "config.json", "export the CLIP again")
        config["parts"] = {**config.get("parts", {}), "clip": part}
        config["rerank"] = {**config.get("rerank", {}), "clip": "@clip"}
    for path in target.rglob("config.json"):
        fields = config if path.parent == target else io.read_json(path, "export the run again")
        _clear_data_folders(fields)
        io.write_text(path, io.to_json(fields, indent=2, sort_keys=True) + "\n")


def _export(run: str, target: Path) -> None:
    """Exports a run and its parts in float16, as the files that loading reads."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "exported")
        if cli.main(["launch.py", "export", f"--workdir={run}", f"--out={out}", "--dtype=float16"]):
            sys.exit(2)
        for path in out.rglob("*"):
            if path.name in ("config.json", "tokenizer.json", "weights.safetensors"):
                copy = target / path.relative_to(out)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def _clear_data_folders(config: dict) -> None:
    """Clears data.dir of a config and of its parts."""
    if "dir" in config.get("data", {}):
        config["data"]["dir"] = ""
    for part in config.get("parts", {}).values():
        _clear_data_folders(part)


def files_table(folder: Path) -> str:
    """Returns the table of the files of a released model, without its card."""
    rows = ["| file | bytes | SHA-256 |", "|---|---|---|"]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "README.md":
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            rows.append(f"| `{path.relative_to(folder).as_posix()}` | {len(content):,} | `{digest}` |")
    return "\n".join(rows) + "\n"


def main(arguments: list[str]) -> None:
    if arguments:
        release(*arguments)
    for name in pretrained.names():
        card = pretrained.FOLDER / name / "README.md"
        text = card.read_text().partition(_HEADING)[0] if card.exists() else f"# pretrained:{name}\n\n"
        card.write_text(f"{text}{_HEADING}\n{files_table(card.parent)}")


if __name__ == "__main__":
    main(sys.argv[1:])
