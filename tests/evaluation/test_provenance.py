"""Provenance that is stored with every result."""

import datetime
import importlib.metadata
import json
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffjax import io
from diffjax.evaluation import provenance


@pytest.fixture
def checkout(tmp_path):
    """A git checkout that tracks a package, and a function that runs git in it."""

    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *author, "-C", str(tmp_path), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("x = 1\n")
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "Start")
    return package, git


def of_checkout(package):
    return provenance._git.__wrapped__(package)


def test_the_environment_is_complete_and_strict_json(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch.py", "sweep", "--workdir=a b", "--steps=1,2"])
    found = provenance.environment()
    assert shlex.split(found["command"]) == sys.argv
    when = datetime.datetime.fromisoformat(found["date"])
    assert abs(datetime.datetime.now(datetime.UTC) - when) < datetime.timedelta(minutes=1)
    assert when.microsecond == 0 and when.utcoffset() == datetime.timedelta(0)
    assert f"{jax.devices()[0].device_kind} x {jax.device_count()}" in found["device"]
    assert found["versions"]["jaxlib"] == importlib.metadata.version("jaxlib")
    assert set(found["versions"]) == {"diffjax", "jax", "jaxlib", "flax", "optax", "numpy"}
    assert io.from_json(io.to_json(found)) == found == json.loads(io.to_json(found))


def test_the_commit_and_whether_the_code_differs_from_it(checkout):
    package, git = checkout
    clean = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert of_checkout(package) == clean
    (package.parent / "samples.png").write_text("untracked, outside the package")
    (package / "code.pyc").write_text("ignored")
    assert of_checkout(package) == clean
    new = package / "new.py"
    new.write_text("untracked, in the package")
    assert of_checkout(package) == {**clean, "dirty": True}
    new.unlink()
    (package.parent / ".gitignore").write_text("*.pyc\n*.png\n")
    assert of_checkout(package) == {**clean, "dirty": True}


def test_without_a_checkout_or_git_there_is_no_commit(checkout, tmp_path_factory, monkeypatch):
    package, _ = checkout
    installed = package.parent / "site-packages"  # inside a checkout that does not track it
    installed.mkdir()
    (installed / "code.py").write_text("")
    assert of_checkout(installed) is None
    assert of_checkout(tmp_path_factory.mktemp("elsewhere")) is None
    monkeypatch.setenv("PATH", "")
    assert of_checkout(package) is None


def test_packages_that_are_not_installed_have_no_version():
    assert provenance._version("no-such-package-of-this-name") is None


def test_differences_that_make_values_incomparable():
    one = {"samples": 100, "seed": 0, "sampler": {"steps": 3}, "reference": {"split": "train", "networks": {"x": 1}}}
    assert provenance.differences([one, {**one, "seed": 1, "weak": "run", "sampler": {"steps": 9}}]) == []
    other = {**one, "samples": 200, "reference": {"split": "test", "networks": {"x": 1}}}
    assert provenance.differences([one, other]) == ["reference.split", "samples"]


def test_code_matters_but_time_and_command_do_not():
    one = {"date": "2024-01-01T00:00:00Z", "command": "a", "git": {"commit": "1", "dirty": False}, "dataset": 1}
    assert provenance.differences([one, {**one, "date": "2025-01-01T00:00:00Z", "command": "b"}]) == []
    assert provenance.differences([one, {**one, "git": {"commit": "2", "dirty": False}}]) == ["git.commit"]
    assert provenance.differences([one, {**one, "dataset": 2}]) == ["dataset"]


def test_a_fingerprint_depends_on_names_types_shapes_and_values():
    tree = {"a": np.zeros((2, 3), np.float32), "b": [np.ones(4, np.int8)]}
    others = [
        {"c": tree["a"], "b": tree["b"]},
        {**tree, "a": tree["a"].astype(np.int32)},
        {**tree, "a": tree["a"].reshape(3, 2)},
        {**tree, "b": [np.array([1, 1, 1, 2], np.int8)]},
    ]
    prints = [provenance.fingerprint(one) for one in (tree, *others)]
    assert len(set(prints)) == 5
    assert provenance.fingerprint(jax.tree.map(jax.numpy.asarray, tree)) == prints[0]


def test_the_code_of_a_result_is_a_hash_of_sources_and_versions(monkeypatch, tmp_path):
    def code():
        return provenance.code_hash.__wrapped__()

    assert code() == code() == provenance.code_hash()
    monkeypatch.setattr(provenance, "_PACKAGE_FOLDER", tmp_path)
    (tmp_path / "cli").mkdir()
    (tmp_path / "samplers.py").write_text("x = 1")
    first = code()
    (tmp_path / "cli" / "sweep.py").write_text("x = 1")  # evaluation does not import it
    assert code() == first
    (tmp_path / "samplers.py").write_text("x = 2")
    assert code() != first
    second = code()
    monkeypatch.setattr(provenance, "_version", lambda package: "0")
    assert code() != second
