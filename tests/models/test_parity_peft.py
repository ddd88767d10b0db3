"""Exported LoRA files, loaded by peft into PyTorch modules with the names of the layers."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from diffjax.models.lora import adapt  # noqa: E402
from diffjax.models.parameter_paths import flatten, unflatten  # noqa: E402
from diffjax.runs import exported_weights  # noqa: E402
from diffjax.runs.loading import load  # noqa: E402
from tests import tiny  # noqa: E402
from tests.command_line import launch  # noqa: E402

pytestmark = pytest.mark.parity
RNG = np.random.default_rng(0)


def module_tree(kernels):
    """Returns PyTorch's layers with kernels of Flax, by path of the layer; paths are nested modules."""
    root = torch.nn.Module()
    for path, kernel in kernels.items():
        *folders, name = path.split("/")
        parent = root
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, torch.nn.Module())
            parent = parent._modules[folder]
        if kernel.ndim == 2:
            layer = torch.nn.Linear(*kernel.shape, bias=False)
            weight = kernel.T
        else:
            layer = torch.nn.Conv2d(*kernel.shape[2:], kernel.shape[:2], bias=False)
            weight = kernel.transpose(3, 2, 0, 1)
        layer.weight.data = torch.tensor(weight.copy())
        parent.add_module(name, layer)
    return root


def kernels_of(folder, name):
    """Returns the kernels of an exported file by path of the layer."""
    tensors = safetensors.numpy.load_file(folder / name)
    kernels = {path: tensor for path, tensor in tensors.items() if path.endswith("/kernel")}
    return {path.removeprefix("params/").removesuffix("/kernel"): tensor for path, tensor in kernels.items()}


def check_peft_computes(folder, original, updated, adapted):
    """Checks that original kernels with the LoRA of a folder compute what updated kernels compute."""
    model = peft.PeftModel.from_pretrained(module_tree(original), str(folder))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == len(adapted)
    layers = dict(model.base_model.model.named_modules())
    for path, kernel in updated.items():
        inputs = RNG.normal(size=(5, *kernel.shape[2:3], *kernel.shape[:2]) if kernel.ndim == 4 else (5, len(kernel)))
        actual = layers[path.replace("/", ".")](torch.tensor(inputs, dtype=torch.float32)).detach().numpy()
        if kernel.ndim == 4:
            expected = np.einsum("nihw,hwio->no", inputs, kernel, dtype=np.float64)[..., None, None]
        else:
            expected = inputs @ np.float64(kernel)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    ("rank", "alpha", "targets"),
    [(2, 4.0, ("*",)), pytest.param(3, 1.5, ("qkv", "out"), marks=pytest.mark.slow)],
)
def test_peft_computes_the_layers_of_an_exported_run(rank, alpha, targets, trained_runs, tmp_path):
    run, out, merged = tmp_path / "run", tmp_path / "out", tmp_path / "merged"
    config = tiny.write(
        tmp_path / "lora.py",
        model=tiny.DIT,
        train__start=str(trained_runs("pixel")),
        train__lora={"rank": rank, "alpha": alpha, "targets": targets},
        train__learning_rate=0.1,
        train__steps=2,
        train__num_preview_samples=0,
        parallel__num_devices=1,
    )
    assert launch("train", f"--config={config}", f"--workdir={run}") == 0
    assert launch("export", f"--workdir={run}", f"--out={out}") == 0
    assert launch("export", f"--workdir={run}", f"--out={merged}", "--merge_lora") == 0
    original, updated = kernels_of(out, "base.safetensors"), kernels_of(merged, "weights.safetensors")
    adapted = {path for path in original if not np.array_equal(original[path], updated[path])}
    assert adapted == load(run).lora[0].kernels.keys()
    check_peft_computes(out, original, updated, adapted)


def test_peft_computes_convolutions(tmp_path):
    kernels = {"conv_1": (1, 1, 3, 4), "conv_3": (3, 3, 3, 2), "conv_out": (1, 1, 4, 2), "dense": (5, 3)}
    kernels = {f"model/{path}": RNG.normal(size=shape).astype(np.float32) for path, shape in kernels.items()}
    base = unflatten({f"{path}/kernel": kernel for path, kernel in kernels.items()})
    model = tiny.LossModel(init_function=lambda key: {"params": base}, loss_functions={"model": None})
    adapter = adapt(tiny.config(train__lora={"rank": 2, "alpha": 3.0, "targets": ("*",)}), model, base)
    shapes = adapter.variable_shapes["params"]
    matrices = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)
    tensors, fields = adapter.to_peft(matrices)
    exported_weights.save(tmp_path / "adapter_model.safetensors", tensors, 0)
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    updated = flatten(adapter.merge(base, matrices))
    updated = {path.removesuffix("/kernel"): np.asarray(kernel) for path, kernel in updated.items()}
    check_peft_computes(tmp_path, kernels, updated, adapter.kernels)
