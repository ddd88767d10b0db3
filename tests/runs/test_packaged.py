"""Configs and experiments by name, and names that do not exist."""

import re

import pytest

from diffjax.errors import UserError
from diffjax.reproduce import spec
from diffjax.runs import packaged
from diffjax.runs.config_files import load_file
from tests import tiny
from tests.command_line import launch, refused


def test_names_are_the_files_of_the_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for kind in ("configs", "experiments"):
        files = {path.relative_to(tiny.ROOT / kind).as_posix()[:-3] for path in (tiny.ROOT / kind).rglob("*.py")}
        assert set(packaged.summaries(kind)) == files - {"common"}
        for name in files - {"common"}:
            assert packaged.find(kind, name) == str(tiny.ROOT / kind / f"{name}.py")
    assert all(summary.endswith(".") for summary in packaged.summaries("configs").values())


def test_a_name_and_a_path_load_the_same_config(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "vqvae:cifar10", "published/adm:64"):
        file, colon, variant = name.partition(":")
        assert load_file(name) == load_file(f"{tiny.ROOT}/configs/{file}.py{colon}{variant}")
    assert spec.load("ddim_table1").title == spec.load(f"{tiny.ROOT}/experiments/ddim_table1.py").title


def test_files_of_the_current_folder_come_first_and_folders_are_not_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert packaged.find("configs", "digits") == str(tiny.ROOT / "configs" / "digits.py")
    (tmp_path / "kl").write_text("")
    assert packaged.find("configs", "kl") == "kl"
    assert packaged.find("configs", "mine.py") == "mine.py"  # reported where it is read


@pytest.mark.parametrize(
    ("kind", "name", "similar"),
    [
        ("configs", "digit", "did you mean 'digits' or 'classifier_digits'"),
        ("configs", "publishd/adm", "did you mean 'published/adm'?"),
        ("experiments", "ddim_tabel1", "did you mean 'ddim_table1'?"),
        ("configs", "zzz", "list all"),
    ],
)
def test_an_unknown_name_proposes_similar_ones_and_how_to_list_all(kind, name, similar):
    verb = {"configs": "train", "experiments": "reproduce"}[kind]
    with pytest.raises(UserError, match=re.escape(f"unknown {kind[:-1]} '{name}': ")) as error:
        packaged.find(kind, name)
    assert similar in str(error.value) and f"`launch.py {verb} --list`" in str(error.value)
    assert len(str(error.value)) < 200


def test_the_verbs_list_names(capsys):
    assert launch("train", "--list") == 0
    assert "\nvqvae2 " in capsys.readouterr().out
    assert launch("reproduce", "--list") == 0
    assert "\nddim_table1 " in capsys.readouterr().out
    assert "unknown config 'digit'" in refused(capsys, "train", "--config=digit", "--workdir=x")
