"""Sources of imports that are hostile, damaged or of another model: one line, nothing executed, no folder left."""

import contextlib
import json
import os
import pickle
import shutil
import struct
import tracemalloc

import flax.serialization
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from diffjax.conversion import autoencoder_config, importing, scheduler_config, source_files, unet_config
from diffjax.errors import UserError
from tests.command_line import launch, refused
from tests.conversion import folders

GIB_8 = struct.pack("<Q", 2**33) + b"{}" * 196
DEEP = b"[" * 10_000 + b"]" * 10_000
DEEP_HEADER = b'{"a":' + DEEP + b"}"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return folders.write_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def source(pipeline, tmp_path):
    """Returns a copy of a pipeline."""
    return shutil.copytree(pipeline, tmp_path / "source")


def import_refused(capsys, source, *flags):
    """Returns the error of an import, which leaves no folder."""
    parent = source.parent / "runs"
    error = refused(capsys, "import", f"--source={source}", f"--workdir={parent / 'run'}", *flags)
    assert not parent.exists() or not list(parent.iterdir())
    return error


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def header(fields):
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text


FILES = {
    "an attack": ("diffusion_pytorch_model.bin", pickle.dumps({"a": Attack()})),
    "an empty pickle": ("diffusion_pytorch_model.bin", b""),
    "a nested pickle": ("diffusion_pytorch_model.bin", b"(" * 10_000 + b"l" * 10_000 + b"."),
    "a header of 8 GiB": (folders.WEIGHTS, GIB_8),
    "a nested header": (folders.WEIGHTS, struct.pack("<Q", len(DEEP_HEADER)) + DEEP_HEADER),
    "a tensor of 8 GiB": (
        folders.WEIGHTS,
        header({"a": {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]}}),
    ),
    "a large index": (f"{folders.WEIGHTS}.index.json", b'{"weight_map": {"a": "../secret.safetensors"}}'),
    "an index of itself": (f"{folders.WEIGHTS}.index.json", b'{"weight_map": {"a": "a.safetensors.index.json"}}'),
    "a nested index": (f"{folders.WEIGHTS}.index.json", DEEP_HEADER),
    "an array of 4 GiB": ("diffusion_flax_model.msgpack", b"\x81\xa1a\xc9\xff\xff\xff\xff\x01\x93"),
    "a nested map": ("diffusion_flax_model.msgpack", b"\x81\xa1a" * 10_000),
    "a folder": (folders.WEIGHTS, None),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_not_weights_is_one_line(source, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, content = FILES[kind]
    (source / "unet" / folders.WEIGHTS).unlink()
    (source / "unet" / name).mkdir() if content is None else (source / "unet" / name).write_bytes(content)
    tracemalloc.start()
    error = import_refused(capsys, source)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    assert "unet" in error and not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("kind", ["safetensors", "bin", "msgpack"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_one_line(source, kind, share, capsys):
    unet = source / "unet"
    tensors = load_file(unet / folders.WEIGHTS)
    path = unet / folders.WEIGHTS
    if kind == "msgpack":  # of names of PyTorch, as it is not read to its end
        path.unlink()
        path = unet / "diffusion_flax_model.msgpack"
        path.write_bytes(flax.serialization.msgpack_serialize(tensors))
    elif kind == "bin":
        torch = pytest.importorskip("torch")
        path.unlink()
        path = unet / "diffusion_pytorch_model.bin"
        torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert str(path) in import_refused(capsys, source)


def nan(tensors):
    tensors["conv_in.bias"][0] = np.nan


def huge(tensors):
    tensors["conv_in.bias"] = np.full(8, 1e300)


TENSORS = {
    "a missing tensor": (lambda tensors: tensors.pop("conv_in.bias"), "conv_in.bias is missing"),
    "a tensor of another network": (
        lambda tensors: tensors.update(other=np.zeros(1, np.float32)),
        "other is not part of that network",
    ),
    "another shape": (
        lambda tensors: tensors.update({"conv_in.bias": np.zeros(9, np.float32)}),
        "conv_in.bias is 9, and does not fit",
    ),
    "another rank": (
        lambda tensors: tensors.update({"conv_in.weight": np.zeros((), np.float32)}),
        "conv_in.weight is a number, and does not fit",
    ),
    "integers": (
        lambda tensors: tensors.update({"conv_in.bias": np.zeros(8, np.int8)}),
        "conv_in.bias is of type int8",
    ),
    "not a number": (nan, "conv_in.bias has values that are not finite"),
    "numbers beyond float32": (huge, "conv_in.bias has values that are not finite"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_another_network_are_one_line(source, kind, capsys):
    change, message = TENSORS[kind]
    path = source / "unet" / folders.WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    assert message in import_refused(capsys, source)


FOLDERS = {
    "an autoencoder as the network": ({"unet/config.json": folders.CODEC}, '_class_name="AutoencoderKL"'),
    "CLIP as the network": (
        {"unet/config.json": {"model_type": "clip", "architectures": ["CLIPModel"]}},
        "unet/config.json: _class_name=null",
    ),
    "a scheduler as the network": ({"unet/config.json": folders.SCHEDULER}, '_class_name="DDIMScheduler"'),
    "a network as the scheduler": ({"scheduler/scheduler_config.json": folders.UNET}, "_class_name"),
    "an unknown pipeline": ({"model_index.json": {"_class_name": "FluxPipeline"}}, "unknown pipeline"),
    "a pipeline without a class": ({"model_index.json": {}}, "unknown pipeline"),
    "a list as a config": ({"unet/config.json": [1]}, "unet/config.json: has no fields"),
    "a number as an index": ({"model_index.json": 3}, "model_index.json: has no fields"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_another_family_is_one_line(source, kind, capsys):
    files, message = FOLDERS[kind]
    for name, fields in files.items():
        (source / name).write_text(json.dumps(fields))
    assert message in import_refused(capsys, source)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": NaN}', DEEP, b'{"a": 1}' + b" " * 2**24])
def test_a_file_that_is_not_json_is_one_line(source, name, content, capsys):
    (source / name).write_bytes(content)
    assert name in import_refused(capsys, source)


@pytest.mark.parametrize("name", ["model_index.json", "unet", "unet/config.json", f"unet/{folders.WEIGHTS}"])
def test_links_that_go_in_circles_are_one_line(source, name, capsys):
    path = source / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(path)
    import_refused(capsys, source)


def test_a_folder_that_contains_itself_is_imported_once(source, tmp_path):
    (source / "again").symlink_to(source)
    (source / "unet" / "up").symlink_to(source)
    assert launch("import", f"--source={source}", f"--workdir={tmp_path / 'run'}") == 0
    hashes = json.loads((tmp_path / "run" / "source.json").read_text())["sha256"]
    assert f"unet/{folders.WEIGHTS}" in hashes and not any(name.count("/") > 1 for name in hashes)


def test_a_pipe_is_one_line(source, capsys):
    for name in ("unet/config.json", f"unet/{folders.WEIGHTS}"):
        (source / name).unlink()
        os.mkfifo(source / name)
        import_refused(capsys, source)
        shutil.copy(__file__, tmp := source / "tmp")
        tmp.replace(source / name)


def test_an_output_folder_that_is_not_empty_is_one_line(source, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("")
    error = refused(capsys, "import", f"--source={source}", f"--workdir={tmp_path / 'run'}")
    assert f"--workdir={tmp_path / 'run'} is not empty" in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


@pytest.mark.parametrize("flags", [(), ("--source=",), ("--source=/does/not/exist",)])
def test_a_source_that_does_not_exist_is_one_line(flags, tmp_path, capsys):
    assert "--source" in refused(capsys, "import", f"--workdir={tmp_path / 'run'}", *flags)


def test_a_config_for_a_folder_is_one_line(source, capsys):
    assert "--config" in import_refused(capsys, source, "--config=configs/published/ddpm.py")


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_a_full_disk_is_one_line(small_disk, source, capsys):
    (small_disk / "other").write_bytes(bytes(2**20 - 2**14))
    error = refused(capsys, "import", f"--source={source}", f"--workdir={small_disk}/run")
    assert f"--workdir={small_disk}/run: cannot be written (No space left" in error
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_an_interrupted_import_leaves_no_folder(source, tmp_path, monkeypatch):
    def interrupt(path, parts):
        raise KeyboardInterrupt

    monkeypatch.setattr(source_files, "files_of", interrupt)  # after the weights are written
    assert launch("import", f"--source={source}", f"--workdir={tmp_path / 'runs' / 'run'}") == 130
    assert list((tmp_path / "runs").iterdir()) == []


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["DownBlock2D", "learned", "scale_shift", "squaredcos_cap_v2"]),
    st.lists(st.one_of(st.integers(-2, 64), st.floats(0, 9), st.text(max_size=2), st.none()), max_size=5),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


def mutated(defaults):
    """Returns a strategy of changes of one to three fields of a config."""
    return st.dictionaries(st.sampled_from(sorted(defaults)), VALUES, min_size=1, max_size=3)


CONFIGS = {
    "network": ("unet/config.json", folders.UNET, unet_config._PIXELS),
    "scheduler": ("scheduler/scheduler_config.json", folders.SCHEDULER, scheduler_config._DEFAULTS),
    "autoencoder": ("config.json", folders.CODEC, autoencoder_config._KL),
}


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folders.write_component(folder := tmp_path_factory.mktemp("codec"), folders.CODEC)
    return folder


@pytest.mark.parametrize("factor", [0, -1.0, 1e-30, 1e30, "0.5"])
def test_factors_of_latents_without_an_inverse_square_are_refused(codec, tmp_path, factor):
    source = shutil.copytree(codec, tmp_path / "source")
    folders.write_json(source / "config.json", {**folders.CODEC, "scaling_factor": factor})
    with pytest.raises(UserError, match="scaling_factor="):
        importing.import_run(str(source), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_of_a_config_is_imported_or_one_line(pipeline, codec, kind, tmp_path_factory, data):
    name, fields, defaults = CONFIGS[kind]
    source = shutil.copytree(codec if kind == "autoencoder" else pipeline, tmp_path_factory.mktemp("a") / "source")
    folders.write_json(source / name, {**fields, **data.draw(mutated({**defaults, **fields}))})
    with contextlib.suppress(UserError):
        importing.import_run(str(source), tmp_path_factory.mktemp("run"))
    shutil.rmtree(source.parent)
