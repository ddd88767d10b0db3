"""Files of single networks with random weights: import from the command line, and the same values in every tensor."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from diffjax import cli  # noqa: E402
from diffjax.conversion.file_tables import TABLES  # noqa: E402
from diffjax.models.parameter_paths import flatten  # noqa: E402
from diffjax.published import table  # noqa: E402
from diffjax.runs.loading import load  # noqa: E402
from tests import parity  # noqa: E402
from tests.nn import test_parity_dalle as dalle  # noqa: E402
from tests.nn import test_parity_dit as dit  # noqa: E402
from tests.nn import test_parity_edm as edm  # noqa: E402
from tests.nn import test_parity_taesd as taesd  # noqa: E402

pytestmark = pytest.mark.parity

IMAGE = 32


def run_import(source, config, workdir, **fields):
    """Runs launch.py import with fields of the config replaced; returns the exit code."""
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return cli.main(["launch.py", "import", f"--source={source}", f"--config={config}", f"--workdir={workdir}", *flags])


def assert_imported(workdir, peer):
    """Asserts that the run has all values of a module's tensors; returns the run."""
    run = load(workdir)
    variables = {name: run.variables[name] for name in run.variables if name != "frozen"}
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    written, expected = table.write(TABLES[run.config.published.naming](run.config), arrays), parity.tensors(peer)
    assert written.keys() == expected.keys()
    for name, value in written.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    return run


@pytest.fixture(scope="module")
def taesd_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taesd")
    peer = taesd.original()
    torch.save(peer["encoder"].state_dict(), folder / "taesd_encoder.pth")
    save_file(peer["decoder"].state_dict(), folder / "taesd_decoder.safetensors")
    fields = {"model__channels": taesd.CHANNELS, "data__image_size": IMAGE}
    assert run_import(folder, "configs/published/taesd.py", folder / "run", **fields) == 0
    assert_imported(folder / "run", peer)
    return folder / "run"


def test_autoencoder_tiny(tmp_path):
    """A folder of diffusers; the export is the source to the bit."""
    peer = parity.randomise(taesd.autoencoder_tiny(factor=4, blocks=2))
    peer.register_to_config(scaling_factor=0.5)
    peer.save_pretrained(tmp_path / "theirs")
    assert cli.main(["launch.py", "import", f"--source={tmp_path}/theirs", f"--workdir={tmp_path}/run"]) == 0
    z = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    with torch.no_grad():
        expected = peer.decode(torch.tensor(z).permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1).numpy()
    codec = load(tmp_path / "run").codec
    np.testing.assert_allclose(codec.scale, 0.5, rtol=1e-6)
    parity.assert_close(jax.jit(codec.decode)(0.5 * z), expected)
    export = ["export", f"--workdir={tmp_path}/run", f"--out={tmp_path}/exported", "--format=diffusers"]
    assert cli.main(["launch.py", *export]) == 0
    copy = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "exported")
    before, after = (json.loads((tmp_path / side / "config.json").read_text()) for side in ("theirs", "exported"))
    assert all(before[field] == value for field, value in after.items() if not field.startswith("_diffusers"))
    for name, value in copy.state_dict().items():
        assert torch.equal(value, peer.state_dict()[name])


def test_dit(tmp_path, taesd_run):
    """The averaged weights of a checkpoint of its training code, on the latents of the tiny autoencoder."""
    peer = parity.randomise(dit.MetaDiT(2, IMAGE // 8, 4))
    other = dit.MetaDiT(2, IMAGE // 8, 4).state_dict()
    torch.save({"model": other, "ema": peer.state_dict(), "opt": {"step": torch.tensor(3.0)}}, tmp_path / "0400000.pt")
    fields = {"model__width": dit.WIDTH, "model__layers": dit.LAYERS, "model__heads": dit.HEADS, "codec": taesd_run}
    fields |= {"data__image_size": IMAGE, "data__num_classes": dit.CLASSES}
    config = "configs/published/dit.py:s2_256"
    assert run_import(tmp_path / "0400000.pt", config, tmp_path / "run", **fields) == 0
    assert_imported(tmp_path / "run", peer)
    sample = ["launch.py", "sample", f"--workdir={tmp_path}/run", f"--out={tmp_path}/x.png", "--num=2", "--steps=2"]
    assert cli.main(sample) == 0
    with Image.open(tmp_path / "x.png") as image:
        assert np.asarray(image).std() > 1


def test_dalle(tmp_path):
    peer = parity.randomise(dalle.network())
    for name in ("encoder", "decoder"):
        torch.save(peer[name], tmp_path / f"{name}.pkl")
    fields = {"model__channels": dalle.CHANNELS, "codebook__size": dalle.CODES, "data__image_size": dalle.SIDE}
    assert run_import(tmp_path, "configs/published/dalle_dvae.py", tmp_path / "run", **fields) == 0
    assert_imported(tmp_path / "run", peer)


def test_edm(tmp_path):
    peer = torch.nn.ModuleDict({"model": parity.randomise(edm.DhariwalUNet())})
    save_file(peer.state_dict(), tmp_path / "edm.safetensors")
    fields = {"data__image_size": edm.SIDE, "data__num_classes": edm.CLASSES, "model__channels": edm.CHANNELS}
    fields |= {"model__multipliers": edm.MULTIPLIERS, "model__blocks": edm.BLOCKS, "model__head_channels": edm.HEAD}
    fields |= {"model__attention_resolutions": edm.ATTENTION}
    config = "configs/published/edm_imagenet64.py"
    assert run_import(tmp_path / "edm.safetensors", config, tmp_path / "run", **fields) == 0
    assert_imported(tmp_path / "run", peer)


def test_missing_files_are_errors(tmp_path, capsys):
    (tmp_path / "encoder.pkl").write_bytes(b"")
    for source, config, message in [
        (tmp_path, "dalle_dvae.py", "has no file decoder.pkl; download it"),
        (tmp_path / "encoder.pkl", "dalle_dvae.py", "is a file; pass the folder that has both files"),
        (tmp_path, "edm_imagenet64.py", "is a folder; pass the file that the header of --config names"),
    ]:
        assert run_import(source, f"configs/published/{config}", tmp_path / "run") == 2
        assert message in capsys.readouterr().err
