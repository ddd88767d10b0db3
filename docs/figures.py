"""Creates the README's figures and prints its numbers: trains a config and sweeps its sampler.

python docs/figures.py [digits | fashion_mnist] [--data_dir=DIR]

Writes docs/figures/NAME.png, the samples at the end of training, and for digits docs/figures/digits_sweep.png. The run
stays in runs/figures/NAME: a second call does not train again. Times depend on the machine.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "figures"


class Run(NamedTuple):
    """A config, and the sweeps of its trained run."""

    config: str
    quoted: tuple[str, ...]  # flags of the sweep whose numbers the README quotes; (): none
    shown: tuple[str, ...]  # flags of the sweep whose plot the README shows; (): none


RUNS = {
    "digits": Run(
        "configs/digits.py",
        ("--steps=50", "--num=500"),
        ("--steps=5,10,20,50,100,250", "--eta=0,1,hat", "--num=200"),
    ),
    "fashion_mnist": Run("configs/ddpm_fashion_mnist.py", (), ()),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="digits", choices=RUNS)
    parser.add_argument("--data_dir", default="", help="folder of prepared data sets; digits need none")
    arguments = parser.parse_args()
    run, workdir = RUNS[arguments.name], ROOT / "runs" / "figures" / arguments.name
    trained = workdir.exists()
    data = [f"--config.data.dir={arguments.data_dir}"] * bool(arguments.data_dir)

    began = time.perf_counter()
    launch("train", f"--config={run.config}", f"--workdir={workdir}", *data)
    seconds = time.perf_counter() - began
    last_preview = sorted((workdir / "samples").glob("step_*.png"))[-1]
    shutil.copyfile(last_preview, FIGURES / f"{arguments.name}.png")
    quoted = sweep(workdir, run.quoted) if run.quoted else None
    if run.shown:
        sweep(workdir, run.shown)
        shutil.copyfile(workdir / "results" / "sweep.png", FIGURES / f"{arguments.name}_sweep.png")

    print(f"\nREADME, {arguments.name}:")
    print("training: " + ("not timed, the run exists" if trained else f"{seconds / 60:.1f} minutes, with compilation"))
    if quoted:
        accuracy, distance = quoted["metrics"]["classifier_accuracy"], quoted["metrics"]["fd_pixels"]
        print(f"on {quoted['device']}; samples: {quoted['num']}, steps: {quoted['settings']['steps']}")
        print(f"classifier accuracy: {percent(accuracy)}")
        print(f"classifier accuracy of real images: {percent(accuracy['real'])}")
        print(f"fd_pixels: {distance['value']:.3f} ± {distance['standard_error']:.3f}")
    return 0


def launch(*arguments: str) -> None:
    """Runs a verb of launch.py. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, str(ROOT / "launch.py"), *arguments], check=True, cwd=ROOT)


def sweep(workdir: Path, flags: tuple[str, ...]) -> dict:
    """Returns the newest entry of a sweep."""
    launch("sweep", f"--workdir={workdir}", "--recompute", *flags)
    return json.loads((workdir / "results" / "results.jsonl").read_text().splitlines()[-1])


def percent(proportion: dict) -> str:
    return f"{100 * proportion['value']:.1f} ± {100 * proportion['standard_error']:.1f} %"


if __name__ == "__main__":
    sys.exit(main())
