"""Folders of the Flax classes of diffusers and transformers, which both libraries no longer have."""

import json
import re
import shutil

import flax.serialization
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from tests.command_line import launch, refused
from tests.conversion import folders

_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}  # FlaxAttentionBlock of the VAE


def to_flax(tensors, *, lists=False, attention=None):
    """Returns the parameters of a Flax class by path, as diffusers or transformers converted PyTorch's.

    Args:
      tensors: tensors by PyTorch's names.
      lists: whether an entry of a list is a module of its own, as in transformers: layers/0, and not layers_0.
      attention: Flax's names of the modules of attention.
    """
    result = {}
    for name, tensor in tensors.items():
        *modules, leaf = (name if lists else re.sub(r"(\w+)\.(\d+)", r"\1_\2", name)).split(".")
        modules = [(attention or {}).get(module, module) for module in modules]
        if leaf == "weight" and modules[-1] in ("token_embedding", "position_embedding"):
            leaf = "embedding"
        elif leaf == "weight" and tensor.ndim == 1:
            leaf = "scale"
        elif leaf == "weight":
            leaf, tensor = "kernel", tensor.T if tensor.ndim == 2 else tensor.transpose(2, 3, 1, 0)
        result["/".join((*modules, leaf))] = tensor
    return result


def write_flax(path, params):
    path.write_bytes(flax.serialization.msgpack_serialize(unflatten_dict(params, sep="/")))


def write_shards(folder, params, count):
    """Writes parameters as transformers' Flax models are saved above the maximum size of a file."""
    files = [f"flax_model-{i + 1:05}-of-{count:05}.msgpack" for i in range(count)]
    shards = {file: dict(list(params.items())[i::count]) for i, file in enumerate(files)}
    for file, shard in shards.items():
        write_flax(folder / file, shard)
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    index = {"metadata": {"total_size": sum(array.nbytes for array in params.values())}, "weight_map": weight_map}
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps(index))


def change_json(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def assert_same_imports(tmp_path, parts=(".",)):
    """Asserts that the imports of the folders `torch` and `flax` are equal, bit for bit."""
    for kind in ("torch", "flax"):
        assert launch("import", f"--source={tmp_path / kind}", f"--workdir={tmp_path / 'runs' / kind}") == 0
    for part in parts:
        expected, actual = (folders.weights(tmp_path / "runs" / kind / part) for kind in ("torch", "flax"))
        assert expected.keys() == actual.keys()
        for name in expected:
            np.testing.assert_array_equal(actual[name], expected[name], strict=True)
    configs = [(tmp_path / "runs" / kind / "config.json").read_text() for kind in ("torch", "flax")]
    assert configs[0] == configs[1]


def test_a_folder_of_flax_gives_the_run_of_the_folder_of_pytorch(tmp_path):
    tensors = folders.write_component(tmp_path / "torch", folders.CODEC)
    folders.write_json(tmp_path / "flax" / "config.json", {**folders.CODEC, "_class_name": "FlaxAutoencoderKL"})
    params = to_flax(tensors, attention=_ATTENTION)
    assert {"query", "proj_attn"} <= unflatten_dict(params, sep="/")["encoder"]["mid_block"]["attentions_0"].keys()
    write_flax(tmp_path / "flax" / "diffusion_flax_model.msgpack", params)
    assert_same_imports(tmp_path)


def test_shards_of_flax_are_one_network_and_a_missing_one_is_one_line(tmp_path, capsys):
    tensors = folders.write_component(tmp_path / "torch", folders.CODEC)
    (tmp_path / "flax").mkdir()
    shutil.copy(tmp_path / "torch" / "config.json", tmp_path / "flax")
    write_shards(tmp_path / "flax", to_flax(tensors, attention=_ATTENTION), 3)
    assert_same_imports(tmp_path)
    recorded = json.loads((tmp_path / "runs" / "flax" / "source.json").read_text())["sha256"]
    assert recorded.keys() == {file.name for file in (tmp_path / "flax").iterdir()}
    (tmp_path / "flax" / "flax_model-00002-of-00003.msgpack").unlink()
    error = refused(capsys, "import", f"--source={tmp_path / 'flax'}", f"--workdir={tmp_path / 'run'}")
    assert "flax_model-00002-of-00003.msgpack" in error


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_pipeline_of_flax_gives_the_run_of_the_pipeline_of_pytorch(tmp_path, name):
    """Stable Diffusion as FlaxStableDiffusionPipeline saved it, and its text encoder in shards."""
    for library in ("torch", "diffusers", "transformers"):
        pytest.importorskip(library)
    from tests.conversion.diffusers_pipelines import PIPELINES

    theirs, ours = tmp_path / "torch", tmp_path / "flax"
    PIPELINES[name]().save_pretrained(theirs)
    shutil.copytree(theirs, ours, ignore=shutil.ignore_patterns("*.safetensors"))
    for part, attention in (("unet", None), ("vae", _ATTENTION)):
        params = to_flax(load_file(theirs / part / folders.WEIGHTS), attention=attention)
        write_flax(ours / part / "diffusion_flax_model.msgpack", params)
    write_shards(
        ours / "text_encoder", to_flax(load_file(theirs / "text_encoder" / "model.safetensors"), lists=True), 2
    )
    for path in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        change_json(ours / path, lambda fields: {**fields, "_class_name": f"Flax{fields['_class_name']}"})
    flax_only = {"use_memory_efficient_attention": True, "split_head_dim": True}  # ways to compute the same numbers
    change_json(ours / "unet" / "config.json", lambda fields: {**fields, **flax_only})
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        change_json(
            ours / "model_index.json",
            lambda fields, part=part: {**fields, part: [fields[part][0], f"Flax{fields[part][1]}"]},
        )
    assert_same_imports(tmp_path, (".", "codec", "clip"))
