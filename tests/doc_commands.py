"""Commands of the documentation, and their execution at tiny size.

Commands are lines of fenced blocks of bash and of indented blocks, in the README, docs/ and the headers of configs and
experiments. `<!-- not run: REASON -->` before a block of a page excludes it from execution.
"""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from diffjax import cli
from diffjax.cli.flags import read_config
from diffjax.evaluation import real_images
from diffjax.runs.config_fields import documented_fields
from diffjax.runs.config_files import flatten, from_json, load_file, to_json
from tests import tiny
from tests.command_line import parsed
from tests.trained_runs import with_random_weights

# Reasons why lines that match are not executed.
NOT_RUN = {
    r"^(python3? -m venv|pip install|git clone|pre-commit)\b": "CI installs the package before the tests",
    r"^pytest\b": "CI runs the tests",
    r"^(npm install|tfds build)\b|^python -m diffjax\.data\.prepare": "downloads a data set",
    r"^(tensorboard|wandb|jupyter)\b|--logger=wandb": "needs a browser or an account; tests/training/test_loggers.py",
    r"^python (docs|tests)/": "writes pages of the documentation; tests/test_docs.py",
    r" import --source=(?!hub:google/ddpm-cifar10-32)": "needs published weights; tests/conversion imports tiny ones",
    r" import --source=\S+ --workdir=runs/ddpm_cifar10": "as tutorials/fine_tune.md",
    r" reproduce .*--scale=": "minutes to hours; tests/reproduce executes tiny experiments",
    r" reproduce .*--results=": "tests/reproduce runs it",
    r"--coordinator=": "several processes; tests/cluster/test_multihost.py",
    r"--(inception|dinov2|lpips|perceptual_file)=": "needs published weights of a feature network",
    r"experiments/NAME\.py": "a pattern of commands",
    r" encode |--config\.data\.name=latents": "encodes a whole data set, minutes; tests/cli/test_encode.py",
    r" demo( |$)": "a server that does not end; tests/demo",
    r" replay ": "needs a run that a failed step has ended; tests/test_faults.py",
    r"=(gs|s3)://": "needs a bucket; tests/runs/test_mirror.py",
    r"^(srun|gcloud)\b": "needs a cluster",
}
PUBLISHED = "needs published weights; tests/conversion imports tiny ones"
_PROGRAMS = re.compile(
    r"^(python3?|diffjax [a-z]+|pip|npm|tfds|pytest|srun|gcloud|git|wandb|tensorboard|jupyter|pre-commit|printf"
    r"|[A-Z_]+=\S+ .*)\b"
)
_LAUNCH = re.compile(r"(?:python launch\.py|(?<![\w.])diffjax) +([a-z_]+)((?: +(?!&|\|)\S.*)?)$")


class Command(NamedTuple):
    """A line of a command block.

    Attributes:
      page: path of the file, from the root.
      line: number of the block's first line.
      text: the command on one line.
      reason: why it is not executed; None: it is executed.
    """

    page: str
    line: int
    text: str
    reason: str | None

    @property
    def argv(self) -> list[str] | None:
        """The verb and its flags, optional ones included; None: not a command of diffjax."""
        text = re.sub(r"(?<=\s)\[(-[^\]]*|[^\]]*)\](?=\s|$)", r"\1", self.text)
        text = re.split(r" &$| \| |; ", text)[0]
        match = _LAUNCH.search(text.rstrip('"') if text.count('"') % 2 else text)
        if not match:
            return None
        return [match[1], *(word for word in shlex.split(match[2]) if word != "...")]


def commands() -> list[Command]:
    """Returns all commands, page by page."""
    pages = [tiny.ROOT / "README.md", tiny.ROOT / "CONTRIBUTING.md", *sorted((tiny.ROOT / "docs").rglob("*.md"))]
    result = [command for path in pages if "reports" not in path.parts for command in _of_page(path)]
    for folder in ("configs", "configs/published", "experiments"):
        for path in sorted((tiny.ROOT / folder).glob("*.py")):
            result += _of_header(path)
    return result


def _of_page(path: Path) -> Iterator[Command]:
    block, reason, fence, previous = [], None, None, ""
    for number, line in enumerate([*path.read_text().splitlines(), ""], 1):
        marker = re.fullmatch(r"<!-- not run: (.*) -->", line.strip())
        opens = re.fullmatch(r"```(\w*)", line) if fence is None else None
        if fence is not None and line.startswith("```"):
            if fence in ("bash", "console", "sh"):
                yield from _of_block(path, number, block, reason)
            block, reason, fence = [], None, None
        elif fence is not None:
            block.append(line)
        elif opens:
            fence = opens[1]
        elif line.startswith("    ") and (block or not previous.strip()):
            block.append(line[4:])
        elif block and line.strip():
            yield from _of_block(path, number, block, reason)
            block, reason = [], None
        if marker:
            reason = marker[1]
        elif line.strip() and not block and fence is None and not line.startswith("```"):
            reason = None
        previous = line
    yield from _of_block(path, number, block, reason)


def _of_header(path: Path) -> Iterator[Command]:
    doc = ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""
    block = [line[4:] for line in doc.splitlines() if line.startswith("    ")]
    yield from _of_block(path, 1, block, PUBLISHED if "published" in path.parts else None)


def _of_block(path: Path, number: int, block: list[str], reason: str | None) -> Iterator[Command]:
    text = re.sub(r"\\\n\s*", " ", "\n".join(block))
    lines = [
        re.sub(r"\s+", " ", re.sub(r"(^|\s{2,}| )# .*", "", line.removeprefix("$ "))).strip()
        for line in text.split("\n")
    ]
    if not any(_PROGRAMS.match(line) for line in lines):
        return
    page = str(path.relative_to(tiny.ROOT))
    variables = {"i": "0"}  # of a loop over processes
    for line in lines:
        if assignment := re.fullmatch(r'([A-Z]+)="(.*)"', line):
            variables[assignment[1]] = assignment[2]
            continue
        line = re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), line)
        for part in line.split(" && "):
            if _PROGRAMS.match(part) or _LAUNCH.search(part):
                on_cluster = line if line.startswith(("srun", "gcloud")) else part
                rule = next((why for pattern, why in NOT_RUN.items() if re.search(pattern, on_cluster)), None)
                yield Command(page, number - len(block), part, reason or rule)


# Execution

# Runs that a page uses and does not train.
_TRAINED = {
    "runs/averages": "configs/digits.py --config.train.ema_lengths=0.05,0.1",
    "runs/dalle": "configs/dalle_shapes.py",
    "runs/dalle_shapes": "configs/dalle_shapes.py",
    "runs/clip": "configs/clip_shapes.py",
    "runs/clip_emoji": "configs/clip_emoji.py",
    "runs/kl": "configs/kl.py:shapes",
    "runs/ddpm": "configs/published/ddpm.py",
    "runs/vqvae": "configs/vqvae.py",
    "runs/vqvae_fashion": "configs/vqvae.py:fashion_mnist",
    "runs/vqvae2": "configs/vqvae2.py",
    "runs/vqvae2_fashion": "configs/vqvae2.py:fashion_mnist",
    "runs/pca": "configs/pca.py --config.clip=runs/clip",
    "runs/fashion_mnist": "configs/ddpm_fashion_mnist.py",
    "runs/classifier_digits": "configs/classifier_digits.py",
    "runs/unclip": "configs/unclip_shapes.py",
    "runs/unclip_shapes": "configs/unclip_shapes.py",
    "runs/glide_shapes": "configs/glide_shapes.py",
}
# Config fields of tiny networks and trainings, where a config has them. Variants of a config are the same programs with
# them, which are compiled once.
_FIELDS = {
    **{
        name: default
        for name, (default, _) in documented_fields().items()
        if re.fullmatch(r"train\.\w+", name) and isinstance(default, float)
    },
    **{name: value for name, value in tiny.OVERRIDES.items() if name.startswith("train.")},
    "train.steps": 2,
    "train.batch_size": 8,
    "train.num_preview_samples": 0,
    "train.accumulate": 1,
    "sampler.steps": 4,
    "sampler.stages.prior.steps": 4,
    "sampler.stages.decoder.steps": 4,
    "sampler.stages.base.steps": 4,
    "sampler.stages.upsampler.steps": 4,
    "dtype": "float32",  # CPUs emulate bfloat16
    "model.channels": 8,
    "model.blocks": 1,
    "model.norm_groups": 4,
    "model.head_channels": 8,
    "model.residual_channels": 8,
    "model.z_channels": 8,
    "model.features": 8,
    "model.components": 4,
    "model.bins": 8,
    "model.width": 16,
    "model.layers": 2,
    "model.dimensions": 12,
    "model.latent": 8,
    "model.latent_channels": 4,
    "model.factor": 2,
    "model.groups": 2,
    "model.dropout": 0.0,
    "codebook.size": 8,
    "adversarial.channels": 8,
    "adversarial.layers": 1,
    "adversarial.adaptive": False,
    "discriminator.channels": 8,
    "mapping.latent": 8,
    "mapping.width": 8,
    "pixelcnn.features": 8,
    "pixelcnn.layers": 2,
    "alignment.width": 16,
    "alignment.dimensions": 16,  # image_encoder.width
    "conditions.caption.width": 16,
    "conditions.caption.layers": 1,
    "conditions.caption.heads": 2,
    "conditions.image_embedding.width": 16,
    "conditions.label_token.width": 16,
    "image_encoder.width": 16,
    "image_encoder.layers": 1,
    "image_encoder.heads": 2,
    "text_encoder.width": 16,
    "text_encoder.layers": 1,
    "text_encoder.heads": 2,
    "text.vocabulary": 300,
    "text.length": 12,
}
_UNETS = ("ddpm", "latent", "ddgan", "classifier")  # systems whose networks need one level only
_DATA = {  # smaller images, and data sets that need no preparation
    "fashion_mnist": {"name": "digits", "image_size": 8},
    "cifar10": {"name": "digits", "image_size": 8},
    "emoji": {"name": "shapes", "image_size": 16},
    "shapes": {"image_size": 16},
    "folder": {"dir": "images"},
}
_CAPS = {"num": 20, "best_of": 20, "ode_steps": 2, "terms": 4, "candidates": 2, "samples": 4}
_FILES = {"image": "image.png", "initial_image": "image.png", "mask": "image.png", "prompts": "prompts.txt"}
_RUN_FLAGS = ("workdir", "classifier", "weak", "clip", "codec")


class Runner:
    """Executes commands at tiny size in a folder per page. Equal configs are trained once.

    Training steps are traced and not compiled, which would take most of the time; the tests of models compile them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._trained: dict[str, Path] = {}  # copies of trained runs, by the JSON of their configs

    def start(self, page: str) -> Path:
        """Returns a new folder with the files that commands read: configs, images and prompts."""
        folder = self.folder / re.sub(r"\W", "_", page)
        folder.mkdir()
        for name in ("configs", "experiments", "launch.py", "diffjax"):
            (folder / name).symlink_to(tiny.ROOT / name)
        rng = np.random.default_rng(0)
        for label in ("cat", "dog"):
            (folder / "images" / label).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "images" / label / f"{i}.png")
                (folder / "images" / label / f"{i}.txt").write_text(f"a {label} number {i}")
        Image.fromarray(pixels).save(folder / "image.png")
        (folder / "prompts.txt").write_text("a small red circle\ntwo green triangles\n")
        return folder

    def run(self, command: Command) -> int:
        """Executes a command in the current folder, after training the runs that it uses and that do not exist."""
        verb, *words = self._substituted(command.argv)
        flags = dict(word.lstrip("-").partition("=")[::2] for word in words)
        for name in [*(flags.get(name) for name in _RUN_FLAGS), *(word for word in words if word.startswith("runs/"))]:
            if name and verb not in ("train", "import"):
                self._require(name)
        for name in ("config.codec", "config.clip", "config.base", "config.train.start"):
            if flags.get(name, "").startswith("runs/"):
                self._require(flags[name])
        if verb == "compare":
            for run in (word for word in words if word.startswith("runs/")):
                sweep = ["sweep", f"--workdir={run}", "--metrics=fd_pixels", "--steps=2", "--num=4"]
                assert (Path(run) / "results" / "results.jsonl").exists() or cli.main(["launch.py", *sweep]) == 0
        if verb == "import":
            self._export_source(Path("source"))
            words = ["--source=source", *(word for word in words if not word.startswith("--source="))]
        if verb in ("train", "benchmark"):
            words = self._tiny(verb, words, "JAX_NUM_CPU_DEVICES" in command.text)
        if verb == "optimize_grid" and "num" not in flags:
            words += ["--num=4", "--reference_steps=10"]
        if verb in ("sample", "sweep", "evaluate") and "batch_size" not in flags:
            words.append("--batch_size=20")
        if verb in ("sweep", "evaluate") and "num" not in flags:
            words.append("--num=20")
        if "nll" in flags.get("metrics", "").split(",") and "ode_steps" not in flags:
            words += ["--terms=4", "--ode_steps=2"]
        if verb == "train" and "workdir" in flags:
            return self._train(words)
        with mock.patch.object(real_images, "MAX_IMAGES", 200):  # that samples are compared with
            return cli.main(["launch.py", verb, *words])

    def _substituted(self, argv: list[str]) -> list[str]:
        """Returns a command with files in the place of placeholders, and small numbers of images."""
        result = []
        for word in argv:
            name, equals, text = word.removeprefix("--").partition("=")
            if text in ("FILE", "DIR") and name in _FILES:
                text = _FILES[name]
            elif text == "RUN" or word == "RUN":
                text = "runs/digits"
            elif name in _CAPS and text.isdigit():
                text = str(min(int(text), 4 if name == "num" and argv[0] == "sample" else _CAPS[name]))
            elif name == "perturbation":
                text = re.sub(r"\(.*\)", "(0)", text)  # tiny networks have few blocks
            elif name == "coordinates":
                text = "8,16"
            elif name == "communication":
                text = "8"  # the virtual devices of the tests
            elif name.startswith("config.data.dir"):
                text = "images" if text in ("DIR", "IMAGES") else text
            text = text.replace("runs/NAME", "runs/glide_shapes").replace("=hub:google/ddpm-cifar10-32", "=source")
            result.append(f"--{name}{equals}{text}" if word.startswith("--") else text or word)
        return result

    def _require(self, workdir: str) -> None:
        run = next((run for run in _TRAINED if f"{workdir}/".startswith(f"{run}/")), workdir)
        if not Path(workdir).exists() and workdir.startswith("runs/"):
            words = [f"--workdir={run}", *f"--config={_TRAINED.get(run, 'configs/digits.py')}".split()]
            for word in words[2:]:
                self._require(word.partition("=")[2])
            assert self._train(self._tiny("train", words, False)) == 0, words

    def _train(self, words: list[str]) -> int:
        """Executes a training. Runs and parts of runs that other pages have trained are copied."""
        config = read_config(parsed("train", *words))
        workdir = next(Path(word.partition("=")[2]) for word in words if word.startswith("--workdir="))
        runs = {workdir / Path(*names): part for names, part in _parts(config) if _is_standalone(part)}
        for path, part in runs.items():
            if (copy := self._trained.get(to_json(part))) and not path.exists():
                shutil.copytree(copy, path, symlinks=True)
                if path == workdir:
                    return 0
        with with_random_weights(trace=True):
            code = cli.main(["launch.py", "train", *words])
        if code:
            return code
        for path, part in runs.items():
            if path.exists() and to_json(part) not in self._trained:
                copy = self.folder / f"trained_{len(self._trained)}"
                self._trained[to_json(part)] = Path(shutil.copytree(path, copy, symlinks=True))
        return 0

    def _tiny(self, verb: str, words: list[str], several_devices: bool) -> list[str]:
        """Returns a command with config overrides that make its networks and its training tiny."""
        values = dict(word.removeprefix("--").partition("=")[::2] for word in words)
        if "config" in values:
            file = values["config"]
            config = from_json(Path(file).read_text()) if file.endswith(".json") else load_file(file)
        else:
            config = from_json((Path(values["workdir"]) / "config.json").read_text())
        overrides = {}
        for names, part in _parts(config):
            fields = dict(_FIELDS)
            if not several_devices and "config.parallel.fsdp" not in values and verb != "benchmark":
                fields["parallel.num_devices"] = 1
            if "config.model.attention_resolutions" not in values:
                fields["model.attention_resolutions"] = ()
                for section in ("model", "discriminator"):
                    if multipliers := part.get(section, {}).get("multipliers"):
                        fields[f"{section}.multipliers"] = multipliers[: 1 if part.system in _UNETS else 2]
            if "width" in part.get("model", {}):
                fields["model.heads"] = 2
            if part.get("diffusion", {}).get("crop"):
                fields["diffusion.crop"] = 8
            name = values.get("config.data.name", part.data.name)
            for field, value in _DATA.get(part.data.name, {}).items() if name == part.data.name else ():
                fields[f"data.{field}"] = value
            known, prefix = flatten(part), "".join(f"parts.{name}." for name in names)
            overrides |= {f"config.{prefix}{field}": value for field, value in fields.items() if field in known}
        if verb == "benchmark":
            overrides.pop("config.train.batch_size", None)
        for name in [name for name in overrides if name in values and name.startswith("config.data.")]:
            del overrides[name]
        remaining = [word for word in words if word.removeprefix("--").partition("=")[0] not in overrides]
        return remaining + [f"--{name}={value}" for name, value in overrides.items()]

    def _export_source(self, folder: Path) -> None:
        """Exports a tiny model as a folder of diffusers, in the place of a published one."""
        if not folder.exists():
            words = ["--config=configs/published/ddpm.py", "--workdir=runs/published"]
            assert self._train(self._tiny("train", words, False)) == 0
            arguments = ["--workdir=runs/published", f"--out={folder}", "--format=diffusers"]
            assert cli.main(["launch.py", "export", *arguments]) == 0


def _parts(config: ConfigDict, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ConfigDict]]:
    """Yields the names that lead to a part, and its config: () and the config itself first."""
    yield names, config
    for name, part in config.get("parts", {}).items():
        yield from _parts(part, (*names, name))


def _is_standalone(config: ConfigDict) -> bool:
    """Returns whether a config refers to no other runs than its own parts."""
    parts = {f"@{names[-1]}" for names, _ in _parts(config) if names}
    values = [str(value) for value in flatten(config).values()]
    return all(value in parts or not value.startswith(("@", "runs/")) for value in values)
