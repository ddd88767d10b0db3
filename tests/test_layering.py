"""Who may import whom: docs/architecture.md, kept."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diffjax"
ANYONE = {"typing", "errors", "io"}
EVERYTHING = {"diffusion", "latents", "nn", "systems", "data", "train", "evals", "choice", "pictures", "config"}
MAY_IMPORT = {
    "diffusion": set(),
    "latents": set(),
    "nn": {"latents"},
    "systems": {"diffusion", "latents", "nn", "choice"},
    "data": set(),
    "train": set(),
    "evals": {"diffusion", "nn"},
    "typing": set(),
    "errors": set(),
    "io": set(),
    "choice": set(),
    "config": set(),
    "pictures": set(),
    "platform": set(),
    "generate": {"systems", "spread"},
    "spread": {"train"},
    "prompts": {"data", "systems", "run"},
    "judge": EVERYTHING | {"workdir", "run", "generate", "prompts", "spread"},
    "measures": EVERYTHING | {"run", "generate", "report", "spread", "judge"},
    "report": {"pictures"},
    "experiment": EVERYTHING
    | {"workdir", "run", "generate", "report", "spread", "training", "ensemble", "measures", "prompts", "judge"},
    "workdir": {"train", "config"},
    "run": EVERYTHING | {"workdir"},
    "program": {"train"},
    "resume": {"config", "program", "train", "workdir"},
    "sheets": EVERYTHING | {"workdir", "generate", "prompts"},
    "training": EVERYTHING | {"workdir", "run", "prompts", "sheets", "program", "resume"},
    "ensemble": EVERYTHING | {"workdir", "run", "training", "program", "resume"},
    "replay": EVERYTHING | {"workdir", "run", "program"},
    "commands": EVERYTHING
    | {"workdir", "run", "generate", "report", "training", "ensemble", "measures", "experiment", "prompts"}
    | {"judge", "replay", "program"},
    "__init__": {"run"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("diffjax.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path):
    here = room(path)
    assert here in MAY_IMPORT, f"{here} is a new room: give it a place in the architecture"
    allowed = MAY_IMPORT[here] | {here} | (ANYONE if here != "diffusion" else set())
    assert imported_rooms(path) <= allowed


def test_the_mathematics_and_networks_never_see_a_config():
    for name in ("diffusion", "latents", "nn", "data", "train", "evals"):
        for path in (PACKAGE / name).rglob("*.py"):
            assert "ml_collections" not in path.read_text(), path


def test_importing_the_package_does_not_import_jax():
    """launch.py sets XLA's flags in between."""
    import subprocess
    import sys

    code = "import sys, diffjax, diffjax.platform; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
