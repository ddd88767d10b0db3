"""Every autoencoder of the line on the same images for the same number of them: reconstructions side by side.

    python experiments/autoencoders.py --data=fashion_mnist --data_dir=DIR --workdir=runs/autoencoders --steps=1500

Trains each config that is not trained yet, measures reconstruction of test images, and writes table.md and figure.png.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))

from diffjax import platform

platform.configure()

from diffjax import commands, report  # noqa: E402
from diffjax.generate import Generator  # noqa: E402
from diffjax.workdir import load, open_source  # noqa: E402

CONFIGS = {  # what each is called
    "vae": "VAE",
    "vqvae": "VQ-VAE",
    "vqvae2": "VQ-VAE-2",
    "dvae": "dVAE",
    "vqgan": "VQGAN",
    "kl": "KL autoencoder",
}
SHOWN = 12

flags.DEFINE_string("data", "fashion_mnist", "the configs' variant: digits | fashion_mnist | cifar10 | emoji")
flags.DEFINE_string("data_dir", "", "where prepared data sets lie")
flags.DEFINE_string("workdir", "runs/autoencoders", "folder of the runs, the table and the figure")
flags.DEFINE_integer("steps", 1500, "training steps of each")
flags.DEFINE_integer("batch_size", 64, "images a step")
flags.DEFINE_integer("num", 1000, "test images")


def main(argv: list[str]) -> None:
    arguments = flags.FLAGS
    arguments(argv)
    root = Path(arguments.workdir)
    columns = ("autoencoder", "latent", "parameters", "MSE", "PSNR", "SSIM", "perplexity of codes", "codes in use")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    rows = {}
    for name, title in CONFIGS.items():
        workdir = root / name
        overrides = {
            "data.dir": arguments.data_dir,
            "train.steps": arguments.steps,
            "train.batch_size": arguments.batch_size,
        }
        _launch(
            "train",
            f"--config=configs/{name}.py:{arguments.data}",
            f"--workdir={workdir}",
            *(f"--config.{field}={value}" for field, value in overrides.items()),
        )
        _launch("evaluate", f"--workdir={workdir}", "--metrics=reconstruction", f"--num={arguments.num}")
        found = json.loads((workdir / "results" / "reconstruction.json").read_text())
        run = load(workdir)
        images = np.stack([example["image"] for example in open_source(run.config, "test").__getitems__(range(SHOWN))])
        rows.setdefault("originals", images)
        back = Generator(run.system, batch_size=SHOWN).reconstruct(run.variables, images)
        rows[f"{title}\nMSE {found['mse']['mean']:.4f}"] = back
        lines.append(_row(title, run, found))
    (root / "table.md").write_text("\n".join(lines) + "\n")
    report.rows_figure(root / "figure.png", rows)
    print("\n".join(lines))
    print(f"{root / 'table.md'}\n{root / 'figure.png'}")


def _launch(*arguments: str) -> None:
    if code := commands.main(["launch.py", *arguments]):
        sys.exit(code)


def _row(title: str, run, found: dict) -> str:
    codes = found.get("codes", [])
    levels = [f"{'x'.join(map(str, level['grid'][:2]))} of {level['vocabulary']}" for level in codes]
    values = (
        title,
        " + ".join(levels) or "x".join(map(str, run.codec.shape)) + " reals",
        f"{run.parameters:,}",
        f"{found['mse']['mean']:.4f}",
        f"{found['psnr']['mean']:.1f}",
        f"{found['ssim']['mean']:.3f}",
        ", ".join(f"{level['perplexity']:.0f}" for level in codes) or "-",
        ", ".join(f"{level['used']:.0%}" for level in codes) or "-",
    )
    return "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    main(sys.argv)
