"""The verbs on chains: a tiny unCLIP and a tiny GLIDE of shapes with all their parts."""

import numpy as np
import pytest

from diffjax import commands
from tests import tiny

RED, BLUE = "a small red circle", "a large blue square"


def launch(*arguments) -> int:
    return commands.main(["launch.py", *map(str, arguments)])


@pytest.fixture(scope="module")
def unclip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unclip")
    config = tiny.write_chain(folder, "unclip", ("clip", "pca", "prior", "ar_prior", "decoder", "upsampler"))
    assert launch("train", f"--config={config}", f"--workdir={folder}/run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def glide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glide")
    config = tiny.write_chain(folder, "glide", ("base", "upsampler", "noised_clip"))
    assert launch("train", f"--config={config}", f"--workdir={folder}/run") == 0
    return folder / "run"


def arrays(workdir, path, *flags):
    assert launch("sample", f"--workdir={workdir}", f"--out={path}", *flags) == 0
    return np.load(path)


UNCLIP = {
    "diffusion": [f"--prompt={RED}", "--prior=diffusion", "--steps=prior:3,decoder:3,upsampler:1"],
    "ar": [f"--prompt={RED}", "--prior=ar"],
    "none": [f"--prompt={RED}", "--prior=none", "--guidance=3"],
    "variations": ["--image=test:0"],
    "inverted": ["--image=test:0", "--invert", "--eta=0"],
    "pictures": ["--image=test:0,test:1", "--interpolate=4"],
    "text diff": ["--image=test:0", f"--prompt={RED}", f"--base_prompt={BLUE}", "--interpolate=4"],
    "components": ["--image=test:0", "--components=1,2,4,12"],
    "painted in": ["--image=test:0", "--mask=left", f"--prompt={RED}"],
    "edited": ["--image=test:0", "--strength=0.5", f"--prompt={RED}"],
}


@pytest.mark.parametrize("case", UNCLIP)
def test_all_that_unclip_draws(unclip, tmp_path, case):
    found = arrays(unclip, tmp_path / "a.npz", "--num=4", *UNCLIP[case])
    assert found["images"].shape == (4, 16, 16, 3)
