"""`export` of runs whose weights are a few numbers: full disks, hostile names and links, and equal bytes."""

import errno
import types
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from diffjax import cli
from diffjax.cli import export
from diffjax.runs.workdir import Workdir


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a text-conditioned run; its weights are 64 kB."""
    source = tmp_path / "run"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    params = {"w": np.arange(2**14, dtype=np.float32), "discriminator": {"w": np.zeros(3, np.float32)}}
    variables = {"params": params, "spectral": {"w": np.zeros(3)}, "frozen": {"codec": np.zeros(3)}}

    def load(path, step=None, *, ema_length=None):
        path = Path(path)
        config = ConfigDict({"whole": path.resolve() == source})
        omitted = ("discriminator", "spectral")
        system = types.SimpleNamespace(text=True if config.whole else None, losses=True, training_only=omitted)
        return types.SimpleNamespace(
            workdir=Workdir(path), config=config, system=system, variables=variables, step=5, lora=None
        )

    load.parts = ()
    monkeypatch.setattr(export, "load", load)
    monkeypatch.setattr(export, "part_names", lambda config, *, for_sampling: load.parts if config.whole else ())
    return types.SimpleNamespace(path=source, load=load)


def launch(run, out, *flags):
    return cli.main(["launch.py", "export", f"--workdir={run.path}", f"--out={out}", *flags])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_exported_folder_is_whole(run, tmp_path):
    run.load.parts = ("codec",)
    assert launch(run, tmp_path / "deep" / "out") == 0
    out = tmp_path / "deep" / "out"
    assert names(out) == ["codec", "config.json", "results", "samples", "tokenizer.json", "weights.safetensors"]
    assert names(out / "codec") == ["config.json", "results", "samples", "weights.safetensors"]
    assert names(out.parent) == ["out"]
    tensors = safetensors.numpy.load_file(out / "weights.safetensors")
    assert tensors.keys() == {"params/w"}
    np.testing.assert_array_equal(tensors["params/w"], np.arange(2**14, dtype=np.float32), strict=True)


def test_weights_and_those_of_parts_are_stored_in_half_precision(run, tmp_path, capsys):
    run.load.parts = ("codec",)
    assert launch(run, tmp_path / "out", "--dtype=float16") == 0
    for folder in (tmp_path / "out", tmp_path / "out" / "codec"):
        weights = safetensors.numpy.load_file(folder / "weights.safetensors")["params/w"]
        np.testing.assert_array_equal(weights, np.arange(2**14, dtype=np.float32).astype(np.float16), strict=True)
    assert launch(run, tmp_path / "other", "--dtype=float16", "--format=diffusers") == 2
    assert "--dtype=float16: is only supported for --format=diffjax" in capsys.readouterr().err


def test_two_exports_are_equal_byte_for_byte(run, tmp_path):
    for name in ("a", "b"):
        assert launch(run, tmp_path / name) == 0
    contents = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 3


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_a_full_disk_leaves_nothing(run, small_disk, capsys):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2**20 - 48 * 2**10))
    assert launch(run, small_disk / "out") == 2
    error = capsys.readouterr().err
    assert f"--out={small_disk}/out: cannot be written (No space left on device)" in error and error.count("\n") == 1
    assert names(small_disk) == ["ballast"]
    ballast.unlink()
    assert launch(run, small_disk / "out") == 0
    assert (small_disk / "out" / "weights.safetensors").stat().st_size > 2**16


def test_a_failed_export_leaves_an_empty_folder_empty(run, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").mkdir()
    with monkeypatch.context() as context:
        context.setattr(export.exported_weights, "save", full)
        assert launch(run, tmp_path / "out") == 2
    assert names(tmp_path / "out") == [] and names(tmp_path) == ["out", "run"]
    assert launch(run, tmp_path / "out") == 0


def test_an_empty_folder_is_filled_through_a_link(run, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "target")
    assert launch(run, tmp_path / "out") == 0
    assert (tmp_path / "out").is_symlink() and (tmp_path / "target" / "config.json").exists()


def test_an_existing_folder_or_file_is_not_changed(run, tmp_path, capsys):
    (tmp_path / "file").write_text("user's")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("user's")
    for name in ("file", "folder"):
        assert launch(run, tmp_path / name) == 2
        assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "user's"


@pytest.mark.parametrize("name", ["..", "../victim", "/ABSOLUTE/victim", "a/b", "", "a b", "."])
def test_a_part_that_is_written_elsewhere_is_refused(run, tmp_path, name, capsys):
    run.load.parts = (name.replace("/ABSOLUTE", str(tmp_path)),)
    before = sorted(tmp_path.rglob("*"))
    assert launch(run, tmp_path / "out") == 2
    assert "must be an identifier" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_of_the_run_is_not_followed(run, tmp_path, relative, capsys):
    (tmp_path / "secret").write_text("secret")
    (run.path / "tokenizer.json").unlink()
    (run.path / "tokenizer.json").symlink_to("../secret" if relative else tmp_path / "secret")
    assert launch(run, tmp_path / "out") == 2
    assert "tokenizer.json is a symbolic link out of its run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_link_within_the_run_is_copied(run, tmp_path):
    (run.path / "tokenizer.json").rename(run.path / "other.json")
    (run.path / "tokenizer.json").symlink_to("other.json")
    (tmp_path / "link").symlink_to(run.path)
    for i, path in enumerate((run.path, tmp_path / "link")):
        launched = cli.main(["launch.py", "export", f"--workdir={path}", f"--out={tmp_path}/out{i}"])
        assert launched == 0
    assert (tmp_path / "out0" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out0" / "tokenizer.json").is_symlink()
