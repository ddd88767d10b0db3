"""The wheel and the source archive, and the program `diffjax` of an installed wheel outside of the repository."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel, which is built from the source archive, and the source archive."""
    out = tmp_path_factory.mktemp("archives")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(tiny.ROOT)], check=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """A function that runs a program of an environment with the wheel, in an empty folder.

    Dependencies are those of the environment of the tests.
    """
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    venv.create(environment, with_pip=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    programs = environment / "bin"
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    subprocess.run([programs / "pip", "install", "--no-deps", "--quiet", archives[0]], env=variables, check=True)
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")

    def run(program, *arguments, code=0):
        command = [programs / program, *map(str, arguments)]
        process = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert process.returncode == code, process.stderr
        return process.stdout + process.stderr

    run.folder, run.site = folder, site
    return run


def test_the_wheel_has_the_package_alone_and_is_small(archives):
    wheel, _ = archives
    assert wheel.stat().st_size < 15e6
    names = zipfile.ZipFile(wheel).namelist()
    files = {name for name in names if name.startswith("diffjax/")}
    assert all(name in files or ".dist-info/" in name for name in names)
    sources = {
        f"{prefix}{path.relative_to(tiny.ROOT).as_posix()}"
        for folder, prefix in (("diffjax", ""), ("configs", "diffjax/"), ("experiments", "diffjax/"))
        for path in (tiny.ROOT / folder).rglob("*.py")
    }
    assert {name for name in files if name.endswith(".py")} == sources
    others = {name for name in files - sources if not name.startswith("diffjax/pretrained/")}
    assert others == {"diffjax/py.typed", "diffjax/demo/page.css", "diffjax/demo/page.js"}


def test_the_source_archive_has_all_that_tests_need(archives):
    _, source = archives
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "docs", "configs", "experiments", "typings", ".ci"):
        for path in (tiny.ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(tiny.ROOT).as_posix() in names
    assert {"launch.py", "pyproject.toml", "README.md", "CITATION.cff", "LICENSE"} <= names


def test_package_indexes_accept_the_archives_and_their_description(archives):
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *archives], check=True)
    metadata = zipfile.ZipFile(archives[0]).read(f"{archives[0].name.rsplit('-', 3)[0]}.dist-info/METADATA").decode()
    assert "](docs/" not in metadata and "# diffjax" in metadata


def test_the_installed_package_is_independent_of_the_repository(installed):
    code = "import diffjax, sys; print(diffjax.__file__); print(sorted(n for n in sys.path if n))"
    file, *paths = installed("python", "-c", code).splitlines()
    assert Path(file).parent == installed.site / "diffjax"
    assert str(tiny.ROOT) not in "".join(paths)
    for name in ("configs", "experiments", "tests"):
        assert "No module named" in installed("python", "-c", f"import {name}", code=1)


def test_training_and_sampling_by_the_name_of_a_config(installed):
    small = [f"--config.train.{field}" for field in ("steps=2", "batch_size=8", "sample_every=0", "eval_every=0")]
    output = installed("diffjax", "train", "--config=digits", "--workdir=runs/digits", *small)
    assert "trained to step 2" in output
    assert "  diffjax sample --workdir=runs/digits" in output and "launch.py" not in output
    sample = ["--num=4", "--steps=2", "--out=samples.png"]
    installed("diffjax", "sample", "--workdir=runs/digits", *sample)
    assert (installed.folder / "samples.png").exists()
    (installed.folder / "mine.py").write_text(
        "from configs import common, digits\n\ndef get_config():\n    return digits.get_config()\n"
    )
    assert "seed = 0" in installed("diffjax", "train", "--config=mine.py", "--print_config")
    assert "seed = 0" in installed("diffjax", "train", "--config=configs/vqvae.py:cifar10", "--print_config")
    error = installed("diffjax", "train", "--config=digit", "--workdir=runs/x", code=2)
    assert "did you mean 'digits'" in error and "`diffjax train --list`" in error


def test_experiments_by_name(installed):
    flags = ["--experiment=ddim_table1", "--workdir=runs/experiments", "--scale=small", "--report_only"]
    assert "0 of 60 cells" in installed("diffjax", "reproduce", *flags, "--data_dir=anywhere")
    report = next((installed.folder / "runs" / "experiments").rglob("report.md")).read_text()
    assert "diffjax reproduce --experiment=ddim_table1" in report
    assert "ddim_table1" in installed("diffjax", "reproduce", "--list")


def test_a_released_model_samples_and_writes_nothing_to_the_package(installed):
    before = sorted((installed.site / "diffjax" / "pretrained").rglob("*"))
    output = installed("diffjax", "sample", "--workdir=pretrained:digits", "--num=2", "--steps=2")
    assert "in runs/pretrained/digits/samples/sample_0001.png" in output
    code = 'import diffjax; print(diffjax.load("pretrained:digits"))'
    assert "path=pretrained:digits" in installed("python", "-c", code)
    assert sorted((installed.site / "diffjax" / "pretrained").rglob("*")) == before
