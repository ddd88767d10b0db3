"""The claim the line starts from: with a strong decoder a VAE ignores its latent, and VQ-VAE does not.

    python experiments/posterior_collapse.py --data_dir=DIR --workdir=runs/posterior_collapse

Trains configs/posterior_collapse.py with either latent, on the same data with the same decoder, and draws what each
latent carries against the training step: the VAE's KL, the perplexity of VQ-VAE's codes, and both decoders' bits/dim.
"""

import json
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))

from diffjax import platform

platform.configure()

import math  # noqa: E402

from diffjax import commands, report  # noqa: E402

flags.DEFINE_string("data", "fashion_mnist", "data set")
flags.DEFINE_integer("image_size", 14, "height and width; Fashion-MNIST is averaged down to it")
flags.DEFINE_string("data_dir", "", "where prepared data sets lie")
flags.DEFINE_string("workdir", "runs/posterior_collapse", "folder of both runs and the figure")
flags.DEFINE_integer("steps", 600, "training steps of each")


def main(argv: list[str]) -> None:
    arguments = flags.FLAGS
    arguments(argv)
    root, logs = Path(arguments.workdir), {}
    for latent in ("vae", "vqvae"):
        fields = {
            "data.name": arguments.data,
            "data.image_size": arguments.image_size,
            "data.dir": arguments.data_dir,
            "model.factor": max(2, arguments.image_size // 7),
            "train.steps": arguments.steps,
            "train.sample_count": 0,
        }
        overrides = (f"--config.{name}={value}" for name, value in fields.items())
        code = commands.main(
            [
                "launch.py",
                "train",
                f"--config=configs/posterior_collapse.py:{latent}",
                f"--workdir={root / latent}",
                *overrides,
            ]
        )
        if code:
            sys.exit(code)
        logs[latent] = [json.loads(line) for line in (root / latent / "metrics.jsonl").read_text().splitlines()]

    def curve(latent, name, factor=1.0):
        return [row["step"] for row in logs[latent]], [factor * row[name] for row in logs[latent]]

    values = arguments.image_size**2  # one channel
    to_bits = 1 / math.log(2)
    report.curves_figure(
        root / "figure.png",
        {
            "VAE: KL (bits an image)": {"VAE": curve("vae", "kl", values)},
            "VQ-VAE: perplexity of its codes": {"VQ-VAE": curve("vqvae", "perplexity")},
            "decoder, given the latent (bits/dim)": {
                "VAE": curve("vae", "nll"),
                "VQ-VAE": curve("vqvae", "reconstruction", to_bits),
            },
        },
    )
    last = {latent: rows[-1] for latent, rows in logs.items()}
    print(f"VAE: KL {last['vae']['kl'] * values:.3f} bits an image, decoder {last['vae']['nll']:.3f} bits/dim")
    print(
        f"VQ-VAE: perplexity {last['vqvae']['perplexity']:.1f}, {last['vqvae']['codes_used']:.0%} of the codes in use, "
        f"decoder {last['vqvae']['reconstruction'] * to_bits:.3f} bits/dim"
    )
    print(root / "figure.png")


if __name__ == "__main__":
    main(sys.argv)
