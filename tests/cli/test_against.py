"""`launch.py benchmark --against`: the comparison of speed with PyTorch."""

import json
import sys

import pytest

from diffjax.benchmark.cases import CASES
from tests.command_line import launch, refused


def test_flags_that_do_not_fit_are_refused(capsys, tmp_path, monkeypatch):
    against = ("benchmark", "--against=torch")
    assert "unknown case 'ddpm_cifar': did you mean 'ddpm_cifar10'?" in refused(capsys, *against, "--cases=ddpm_cifar")
    assert "unknown peer 'tensorflow'" in refused(capsys, "benchmark", "--against=tensorflow")
    assert "--config: has no effect with --against" in refused(capsys, *against, "--config=digits")
    assert "--config.seed=1: has no effect with --against" in refused(capsys, *against, "--config.seed=1")
    assert "--cases: requires --against" in refused(capsys, "benchmark", "--config=digits", "--cases=sd15")
    monkeypatch.setitem(sys.modules, "torch", None)
    error = refused(capsys, *against, "--cases=dit_s2")
    assert error == "error: --against=torch: requires torch; pip install 'diffjax[parity]'\n"


@pytest.mark.slow
@pytest.mark.parity
def test_full_networks_have_as_many_parameters_as_their_peers():
    """Without memory for them: shapes on our side, PyTorch's device "meta" on the other."""
    torch, workloads = pytest.importorskip("torch"), pytest.importorskip("diffjax.benchmark.torch_workloads")
    from diffjax.benchmark.cases import make_config, peer_of
    from diffjax.models.parameter_paths import flatten
    from diffjax.runs.loading import build_model

    for name, expected in {"ddpm_cifar10": 35_746_307, "dit_s2": 32_858_896}.items():
        config = make_config(name, "full", "float32")
        ours = flatten(build_model(config, abstract=True).variable_shapes["params"])
        with torch.device("meta"):
            network = workloads.make_network(peer_of(name, config))
        assert sum(leaf.size for leaf in ours.values()) == workloads.count(network) == expected, name


@pytest.mark.slow
@pytest.mark.parity
def test_every_case_has_both_sides(tmp_path):
    pytest.importorskip("diffusers")
    flags = ["--scale=toy", "--turns=1", "--steps=1", f"--out={tmp_path}/torch.json"]
    assert launch("benchmark", "--against=torch", *flags) == 0
    rows = json.loads((tmp_path / "torch.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {*CASES}
    for row in rows:
        assert row["diffjax_seconds"] > 0 and row["peer_seconds"] > 0
        assert abs(row["diffjax_parameters"] / row["peer_parameters"] - 1) <= CASES[row["case"]].tolerance, row["case"]


@pytest.mark.slow
@pytest.mark.parity
def test_the_table_has_both_sides(tmp_path, capsys):
    pytest.importorskip("diffusers")
    flags = ["--cases=kl_f8", "--scale=toy", "--turns=2", "--steps=2", f"--out={tmp_path}/torch.json"]
    assert launch("benchmark", "--against=torch", *flags) == 0
    results = json.loads((tmp_path / "torch.json").read_text())
    (row,) = results["rows"]
    for name in ("seconds", "peak_memory_gib"):
        assert row[f"diffjax_{name}"] > 0 and row[f"peer_{name}"] > 0
    assert row["diffjax_parameters"] == row["peer_parameters"] and row["diffjax_compile_seconds"] > 0
    assert len(row["ratios"]) == 2 and min(row["ratios"]) <= row["ratio"] <= max(row["ratios"])
    assert results["machine"]["torch"]["versions"].keys() == {"torch", "diffusers", "transformers"}
    header, cells = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    assert header[:4] == ["case", "per", "peer", "batch"] and cells[0] == "kl_f8"
