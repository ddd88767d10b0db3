"""Folders of the Flax classes of diffusers, which diffusers no longer has."""

import re

import flax.serialization
import numpy as np
from flax.traverse_util import unflatten_dict

from tests.command_line import launch
from tests.conversion import folders

_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}  # FlaxAttentionBlock of the VAE


def to_flax(name, tensor):
    """Returns the path and the value of a parameter, as diffusers converted PyTorch's."""
    *modules, leaf = re.sub(r"(\w+)\.(\d+)", r"\1_\2", name).split(".")
    if leaf == "weight":
        leaf = "scale" if tensor.ndim == 1 else "kernel"
        tensor = tensor.T if tensor.ndim == 2 else tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
    return (*(_ATTENTION.get(module, module) for module in modules), leaf), tensor


def test_a_folder_of_flax_gives_the_run_of_the_folder_of_pytorch(tmp_path):
    tensors = folders.write_component(tmp_path / "torch", folders.CODEC)
    folders.write_json(tmp_path / "flax" / "config.json", {**folders.CODEC, "_class_name": "FlaxAutoencoderKL"})
    tree = unflatten_dict(dict(to_flax(name, tensor) for name, tensor in tensors.items()))
    assert {"query", "proj_attn"} <= tree["encoder"]["mid_block"]["attentions_0"].keys()
    content = flax.serialization.msgpack_serialize(tree)
    (tmp_path / "flax" / "diffusion_flax_model.msgpack").write_bytes(content)
    for kind in ("torch", "flax"):
        assert launch("import", f"--source={tmp_path / kind}", f"--workdir={tmp_path / 'runs' / kind}") == 0
    expected, actual = (folders.weights(tmp_path / "runs" / kind) for kind in ("torch", "flax"))
    assert expected.keys() == actual.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], strict=True)
