"""LoRA against W + (alpha / r) A B in NumPy: parameters, gradients, exports, and runs from the command line."""

import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.models.lora import LoraModel, adapt
from diffjax.models.parameter_paths import flatten
from diffjax.runs.checkpoint_files import list_steps
from diffjax.runs.loading import build_model, load
from diffjax.typing import Aux
from tests import tiny
from tests.command_line import launch, refused, sample

RNG = np.random.default_rng(0)
# A run of the same network as the shared run "pixel".
PIXEL = {
    "model": tiny.DIT,
    "train__num_preview_samples": 0,
    "parallel__num_devices": 1,
    "train__learning_rate_schedule": "constant",
}


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


BASE = {
    "model": {
        "dense": {"kernel": random(3, 4), "bias": random(4)},
        "conv_1": {"kernel": random(1, 1, 3, 2)},
        "conv_3": {"kernel": random(3, 3, 3, 2)},
        "table": {"embedding": random(5, 3)},
    }
}


def outputs(variables, batch, keys, context):
    layers = variables["params"]["model"]
    return ((batch["x"] @ layers["dense"]["kernel"] + layers["dense"]["bias"][None, :]) ** 2).sum(-1), Aux({})


def model(base=BASE, **losses):
    return tiny.LossModel(init_function=lambda key: {"params": base}, loss_functions=losses or {"model": outputs})


def lora(rank=2, alpha=3.0, targets=("*",), of=None, **changes):
    config = tiny.config(train__lora={"rank": rank, "alpha": alpha, "targets": targets}, **changes)
    of = of or model()
    return adapt(config, of, of.init(jax.random.key(0))["params"])


def matrices(adapter):
    """Returns random parameters, with B that is not zero."""
    shapes = adapter.variable_shapes["params"]
    return jax.tree.map(lambda leaf: random(*leaf.shape), shapes)


def test_dense_layers_and_1x1_convolutions_are_adapted_and_the_rest_stays():
    adapter = lora()
    trained = matrices(adapter)
    assert {path: leaf.shape for path, leaf in flatten(trained).items()} == {
        "model/dense/lora_A": (3, 2),
        "model/dense/lora_B": (2, 4),
        "model/conv_1/lora_A": (3, 2),
        "model/conv_1/lora_B": (2, 2),
    }
    merged = adapter.merge(BASE, trained)["model"]
    for name in ("dense", "conv_1"):
        a, b = (np.float64(trained["model"][name][matrix]) for matrix in ("lora_A", "lora_B"))
        kernel = BASE["model"][name]["kernel"]
        np.testing.assert_allclose(merged[name]["kernel"], kernel + 3.0 / 2 * (a @ b).reshape(kernel.shape), rtol=1e-5)
    np.testing.assert_array_equal(merged["dense"]["bias"], BASE["model"]["dense"]["bias"])
    np.testing.assert_array_equal(merged["conv_3"]["kernel"], BASE["model"]["conv_3"]["kernel"])


def test_the_first_state_is_the_base_and_a_is_gaussian_of_unit_gain():
    wide = {"model": {"dense": {"kernel": random(400, 3)}}}
    adapter = lora(rank=50, of=model(wide))
    params = adapter.init(jax.random.key(0))["params"]
    jax.tree.map(np.testing.assert_array_equal, adapter.merge(wide, params), wide)
    a = np.asarray(params["model"]["dense"]["lora_A"])
    np.testing.assert_allclose(a.std(), 400**-0.5, rtol=0.03)


def test_gradients_are_those_of_the_matrices():
    """dL/dA = s G B^T and dL/dB = s A^T G, where G = dL/dW and s = alpha / r."""
    adapter = lora(targets=("dense",))
    trained, x = matrices(adapter), random(6, 3)

    def mean_loss(params):
        variables = {"params": params, "frozen": {"base": BASE}}
        return adapter.losses["model"](variables, {"x": jnp.asarray(x)}, None, None)[0].mean()

    gradients = jax.grad(mean_loss)(trained)["model"]["dense"]
    layer = BASE["model"]["dense"]
    a, b = (np.float64(trained["model"]["dense"][name]) for name in ("lora_A", "lora_B"))
    kernel = layer["kernel"] + 1.5 * a @ b
    g = 2 * x.T.astype(np.float64) @ (x @ kernel + layer["bias"]) / len(x)
    np.testing.assert_allclose(gradients["lora_A"], 1.5 * g @ b.T, rtol=1e-4)
    np.testing.assert_allclose(gradients["lora_B"], 1.5 * a.T @ g, rtol=1e-4)


def test_the_format_of_peft():
    """peft keeps A as [r, in] and B as [out, r], and adds (alpha / r) B A to a weight [out, in]."""
    adapter = lora()
    trained = matrices(adapter)
    tensors, fields = adapter.to_peft(trained)
    assert fields["target_modules"] == ["model.conv_1", "model.dense"]
    for name, shape in (("dense", ()), ("conv_1", (1, 1))):
        a, b = (np.float64(tensors[f"base_model.model.model.{name}.lora_{matrix}.weight"]) for matrix in "AB")
        assert (a.shape, b.shape) == ((2, 3, *shape), (BASE["model"][name]["kernel"].shape[-1], 2, *shape))
        update = fields["lora_alpha"] / fields["r"] * b.reshape(-1, 2) @ a.reshape(2, -1)
        kernel, merged = (tree["model"][name]["kernel"].squeeze() for tree in (BASE, adapter.merge(BASE, trained)))
        np.testing.assert_allclose(merged.T, kernel.T + update, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": model({"model": {"conv": {"kernel": random(3, 3, 1, 2)}}})}, "train.lora.rank=2: .*no dense layers"),
        ({"of": model(a=outputs, b=outputs)}, "train.lora.rank=2: is only supported for models with one loss"),
        ({"targets": ("conv_3",)}, "train.lora.targets=conv_3: matches no parameter; did you mean conv_1"),
        ({"targets": ()}, "train.lora.targets=.*must name at least one"),
        ({"rank": 5}, "train.lora.rank=5: must be at most 4, the largest side of an adapted kernel"),
        ({"alpha": 0.0}, "train.lora.alpha=0: must be a finite number above 0"),
        ({"train__freeze": ("dense",)}, "train.freeze=.*is not supported with train.lora.rank"),
        ({"train__start_fresh": ("dense",)}, "train.start_fresh=.*is not supported with train.lora.rank"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        lora(**options)


@pytest.fixture(scope="module")
def traces():
    """Numbers of times that updates were traced, by command."""
    return []


@pytest.fixture(scope="module")
def lora_run(trained_runs, tmp_path_factory, traces):
    """A LoRA of a run that is gone; it was trained for one step and resumed for three, with a preview of each."""
    folder = tmp_path_factory.mktemp("lora")
    base = shutil.copytree(trained_runs("pixel"), folder / "base")
    changes = {"train__lora": {"rank": 2, "alpha": 4.0, "targets": ("qkv", "out")}, "train__sample_every": 1}
    config = tiny.write(folder / "config.py", **PIXEL | changes | {"train__num_preview_samples": 10})
    run = ["train", f"--config={config}", f"--config.train.start={base}", f"--workdir={folder / 'run'}"]

    def train(*flags):
        traces.append(0)
        assert launch(*run, *flags) == 0

    def counted(self, *arguments, merge=LoraModel.merge):
        traces[-1] += 1
        return merge(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoraModel, "merge", counted)
        train("--config.train.steps=1")
        shutil.rmtree(base)
        train()
    return folder / "run"


def test_previews_merge_by_one_program(lora_run, traces):
    assert len(list((lora_run / "samples").glob("step_*.png"))) == 4
    assert traces[0] == traces[1]


def test_a_lora_run_trains_and_stores_the_matrices_alone(lora_run, trained_runs):
    run, base = load(lora_run), load(trained_runs("pixel"))
    assert list_steps(lora_run / "checkpoints")[-1] == run.step == 4
    adapter, trained = run.lora
    assert all("qkv" in layer or "out" in layer for layer in adapter.kernels)
    merged, before = flatten(run.variables["params"]), flatten(base.variables["params"])
    for path, leaf in merged.items():
        changed = not np.array_equal(leaf, before[path])
        assert changed == (path.removesuffix("/kernel") in adapter.kernels and path.endswith("/kernel")), path
    sizes = {
        path: sum(f.stat().st_size for f in (path / "checkpoints" / "4" / "variables").rglob("*") if f.is_file())
        for path in (lora_run, trained_runs("pixel"))
    }
    assert sizes[lora_run] < sizes[trained_runs("pixel")] / 2
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) < sum(leaf.size for leaf in before.values()) / 10


@pytest.mark.slow
def test_exports_of_a_lora_give_its_samples(lora_run, tmp_path, capsys):
    assert launch("export", f"--workdir={lora_run}", f"--out={tmp_path / 'lora'}") == 0
    assert launch("export", f"--workdir={lora_run}", f"--out={tmp_path / 'merged'}", "--merge_lora") == 0
    alone = safetensors.numpy.load_file(tmp_path / "lora" / "weights.safetensors")
    assert set(alone) == {f"params/{path}" for path in flatten(load(lora_run).lora[1])}
    assert set(safetensors.numpy.load_file(tmp_path / "merged" / "weights.safetensors")) == {
        f"params/{path}" for path in flatten(load(lora_run).variables["params"])
    }
    expected = sample(lora_run, tmp_path, "--num=4")["images"]
    for name in ("lora", "merged"):
        np.testing.assert_array_equal(sample(tmp_path / name, tmp_path, "--num=4")["images"], expected)
    error = refused(capsys, "export", f"--workdir={tmp_path / 'merged'}", f"--out={tmp_path / 'no'}", "--merge_lora")
    assert "--merge_lora: requires a LoRA run" in error


def test_a_lora_requires_a_run_to_adapt(tmp_path, capsys):
    config = tiny.write(tmp_path / "config.py", train__lora={"rank": 2, "alpha": 4.0, "targets": ("*",)}, **PIXEL)
    error = refused(capsys, "train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert error.startswith("error: train.lora.rank=2: requires train.start")
    assert not (tmp_path / "run").exists()


def test_a_transformer_of_a_diffusion_model_can_be_adapted():
    config = tiny.config(train__lora={"rank": 1, "alpha": 1.0, "targets": ("qkv",)})
    network = build_model(config)
    shapes = jax.eval_shape(network.init, jax.random.key(0))["params"]
    assert all(layer.endswith("qkv") for layer in adapt(config, network, shapes).kernels)
