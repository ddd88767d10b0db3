"""Writes docs/experiments.md: every experiment, what its paper claims, and what came of it here.

python docs/experiments.py > docs/experiments.md
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

HEAD = """# Experiments

Made by `python docs/experiments.py > docs/experiments.md`; a test compares. Each is a file of `experiments/`, run by

    python launch.py reproduce --experiment=experiments/NAME.py --workdir=runs/experiments --scale=smoke|small|paper \\
                               [--data_dir=DIR]

`smoke` shows that it works, in minutes on two CPU cores; `small` is for one GPU for an hour or a CPU overnight; `paper`
is the paper's own setting. Experiments in one workdir share what they train. [evaluation.md](evaluation.md) says what a
file holds, how cells are kept and what a verdict means.

Our outcomes are of small models trained for minutes: they show whether an order appears already there, not the paper's
values. A claim holds, or does not hold, only beyond its uncertainty; otherwise it is undecided. With one seed the
uncertainty covers the samples only, not another training.
"""


def main() -> str:
    """The page's text."""
    from diffjax.reproduce import spec

    lines = ["| experiment | the paper's claim | here | report |", "|---|---|---|---|"]
    for path in sorted((ROOT / "experiments").glob("*.py")):
        experiment = spec.load(str(path))
        title = f"[`{path.stem}`](../experiments/{path.name}): {experiment.title} ({experiment.source})"
        folders = sorted((ROOT / "docs" / "reports").glob(f"{path.stem}_*"))
        found = [_outcome(folder) for folder in folders] or [("not run at a scale that says anything", "–")]
        here, links = ("<br>".join(column) for column in zip(*found, strict=True))
        lines.append(f"| {title} | {experiment.claim} | {here} | {links} |")
    return HEAD + "\n" + "\n".join(lines) + "\n"


def _outcome(folder: Path) -> tuple[str, str]:
    """Returns a report's verdicts and a link to it."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    words = [f"{ordering['claim']}: {ordering['verdict']}" for ordering in results["orderings"]]
    verdicts = "; ".join(words) or "no order is claimed"
    count = len(results["seeds"])
    where = f"`{results['scale']}`, {count} seed{'s' * (count > 1)}"
    return f"{where}: {verdicts}", f"[{results['scale']}](reports/{folder.name}/report.md)"


if __name__ == "__main__":
    print(main(), end="")
