"""`launch.py export --format=safetensors`: files with the names of the code that published a network."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffjax.conversion import file_tables
from diffjax.errors import UserError
from diffjax.runs import exported_weights
from diffjax.runs.config_files import load_file as load_config
from diffjax.runs.loading import build_model, load
from diffjax.runs.workdir import Workdir
from tests import tiny
from tests.command_line import launch, refused

LOSS = {"likelihood": "l1", "perceptual_file": "", "perceptual_weight": 1.0, "beta": 1.0, "free_bits": 0.0}
LDM = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (), "norm_groups": 4}
TAESD = {"architecture": "taesd", "channels": 8, "blocks": 1, "factor": 2, "latent_channels": 4}


def config(naming):
    """Returns a tiny config, and names of tensors in its files."""
    if naming == "compvis":
        ldm = {**LDM, "architecture": "ldm", "norm_min_channels": 0, "latent_channels": 4, "z_channels": 4}
        result = tiny.config("vae", loss=LOSS, model=ldm)
        names = {"model.safetensors": ["encoder.down.1.block.0.nin_shortcut.weight", "post_quant_conv.bias"]}
    else:
        result = tiny.config("vae", loss=LOSS, model=TAESD)
        names = {"taesd_encoder.safetensors": ["2.weight"], "taesd_decoder.safetensors": ["1.bias", "3.conv.4.weight"]}
    return result, names


def write_run(path, config):
    """Writes an exported run with random weights."""
    workdir = Workdir(path)
    workdir.create()
    workdir.write_config(config)
    exported_weights.save(workdir.weights, tiny.randomised(build_model(config, path).init), 0)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["compvis", "taesd"])
def test_an_import_of_an_export_has_the_same_weights(tmp_path, naming):
    base, names = config(naming)
    with base.unlocked():
        base.published = {"naming": naming, "scaling_factor": 1.0}
    run = write_run(tmp_path / "run", base)
    assert launch("export", f"--workdir={run}", f"--out={tmp_path}/files", "--format=safetensors") == 0
    for file, some in names.items():
        assert {*some} <= load_file(tmp_path / "files" / file).keys()
    source = tmp_path / "files" / ("" if len(names) > 1 else "model.safetensors")
    flags = [f"--source={source}", f"--config={tmp_path}/files/config.json", f"--workdir={tmp_path}/imported"]
    assert launch("import", *flags) == 0
    before, after = (load(path).variables["params"] for path in (run, tmp_path / "imported"))
    if naming == "taesd":  # the file has no log variances
        for variables in (before, after):
            variables["model"]["encoder"].pop("conv_out")
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
def test_a_run_without_a_naming_is_an_error(tmp_path, capsys):
    run = write_run(tmp_path / "run", tiny.config())
    error = refused(capsys, "export", f"--workdir={run}", f"--out={tmp_path}/files", "--format=safetensors")
    assert "published.naming='' of" in error and "--format=safetensors requires one of dalle, dit, edm" in error


def test_the_positions_of_dit_follow_from_its_autoencoder(tmp_path):
    """Factor 8 is Stable Diffusion's; the position embeddings of a file are those of the autoencoder's latents."""

    def patches(config):
        names = file_tables.TABLES["dit"](config)["params/model"].table
        return names["pos_embed"].value.shape[1]

    dit = load_config("configs/published/dit.py:s2_256")
    assert patches(dit) == (256 // 8 // 2) ** 2
    with dit.unlocked():
        dit.parts.codec.model.multipliers = (1, 2, 4)
        assert patches(dit) == (256 // 4 // 2) ** 2
        run = Workdir(tmp_path / "codec")
        run.create()
        run.write_config(tiny.config("vae", model={**TAESD, "factor": 16}))
        dit.codec = str(run.path)
        assert patches(dit) == (256 // 16 // 2) ** 2
        run.write_config(tiny.config("vae"))
        with pytest.raises(UserError, match=rf"^codec={run.path}: must have model.architecture=ldm or taesd") as error:
            patches(dit)
    assert "\n" not in str(error.value)
