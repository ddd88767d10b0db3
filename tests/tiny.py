"""The smallest config that still has every part: digits, a UNet of a few thousand parameters, ten timesteps."""

from pathlib import Path

from diffjax.commands.flags import load_file

ROOT = Path(__file__).parent.parent

OVERRIDES = {
    "model.channels": 8,
    "model.norm_groups": 4,
    "model.multipliers": (1, 2),
    "model.attention_resolutions": (4,),
    "diffusion.timesteps": 20,
    "train.steps": 4,
    "train.batch_size": 16,
    "train.warmup_steps": 1,
    "train.log_every": 1,
    "train.sample_every": 0,
    "train.sample_count": 10,
    "train.checkpoint_every": 2,
    "sampler.steps": 4,
}


def config(base: str = "digits", **changes):
    """A config on digits made tiny; `changes` by dotted name with __ for the dots."""
    made = load_file(str(ROOT / "configs" / f"{base}.py"))
    made.unlock()
    for name, value in (OVERRIDES | {name.replace("__", "."): value for name, value in changes.items()}).items():
        section, _, field = name.rpartition(".")
        if not section or section in made:
            (made[section] if section else made)[field] = value
    return made.lock()


def write(path: Path, base: str = "digits", **changes) -> Path:
    """A config file that a command line can name."""
    lines = [
        "from ml_collections import ConfigDict",
        "inf = float('inf')",
        "def get_config():",
        f"    return ConfigDict({config(base, **changes).to_dict()!r})",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
