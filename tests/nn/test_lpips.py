"""LPIPS against the package of its authors, properties of a distance, and errors for other files."""

import sys
import types
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.nn.pretrained import lpips
from tests.nn.test_efficientnet import write_state

# Torchvision's `features`: (width, kernel) or (width, kernel, stride, padding) of convolutions with ReLU; "pool".
LAYERS = {
    "alex": [(64, 11, 4, 2), "pool", (192, 5, 1, 2), "pool", (384, 3), (256, 3), (256, 3), "pool"],
    "vgg": [(64, 3)] * 2
    + ["pool", *[(128, 3)] * 2]
    + ["pool", *[(256, 3)] * 3]
    + ["pool", *[(512, 3)] * 3]
    + ["pool", *[(512, 3)] * 3, "pool"],
}
WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
LEAST = {"alex": 31, "vgg": 16}


def backbone(name):
    """Returns random tensors with the names of torchvision."""
    rng, tensors, i, inputs = np.random.default_rng(0), {}, 0, 3
    for layer in LAYERS[name]:
        if layer != "pool":
            width, kernel = layer[:2]
            shape = (width, inputs, kernel, kernel)
            tensors[f"features.{i}.weight"] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
            tensors[f"features.{i}.bias"] = rng.normal(0, 0.1, width)
            inputs = width
        i += 1 if layer == "pool" else 2
    tensors["classifier.6.bias"] = np.zeros(1000)  # not used
    return {key: tensor.astype(np.float32) for key, tensor in tensors.items()}


def linear(name):
    rng = np.random.default_rng(1)
    keys = [f"lin{i}.model.1.weight" for i in range(5)]
    pairs = zip(keys, WIDTHS[name], strict=True)
    return {key: rng.uniform(0, 1, (1, width, 1, 1)).astype(np.float32) for key, width in pairs}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The two files of each network."""
    folder = tmp_path_factory.mktemp("lpips")
    for name in LAYERS:
        write_state(folder / f"{name}.pth", backbone(name))
        write_state(folder / f"{name}_linear.pth", linear(name))
    return {name: (folder / f"{name}.pth", folder / f"{name}_linear.pth") for name in LAYERS}


def images(*shape):
    return np.random.default_rng(2).uniform(-1, 1, (2, *shape)).astype(np.float32)


distance = jax.jit(lpips.distance)


@pytest.mark.parametrize("name", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_is_a_distance(files, name):
    params = lpips.load(*files[name])
    assert name in params and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    a, b = images(3, 40, 33, 3)
    b[1] = a[1]
    found = distance(params, a, b)
    assert found.shape == (3,) and found[1] == 0
    assert np.all(found[::2] > 0.1) and np.all(np.isfinite(found))
    np.testing.assert_allclose(distance(params, b, a), found, rtol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_images_must_not_be_too_small(files, name):
    least = LEAST[name]
    measure = partial(jax.eval_shape, lpips.distance, lpips.load(*files[name]))
    assert measure(*images(2, least, least + 9, 3)).shape == (2,)
    for shape in ((least - 1, 64), (64, least - 1), (8, 8)):
        with pytest.raises(ValueError, match=f"at least {least}, not {shape[0]}x{shape[1]}"):
            measure(*images(2, *shape, 3))
    with pytest.raises(ValueError, match="must be equal for a perceptual distance"):
        measure(np.zeros((1, 64, 64, 3)), np.zeros((2, 64, 64, 3)))


def test_files_of_other_networks_are_reported(tmp_path, files):
    def without(tensors, key):
        return {other: tensor for other, tensor in tensors.items() if other != key}

    alex, alex_linear = backbone("alex"), linear("alex")
    cases = (
        ("neither torchvision's AlexNet nor its VGG16", alex_linear, alex_linear),
        (r"alexnet-owt.*: features\.6\.bias is missing", without(alex, "features.6.bias"), alex_linear),
        (r"has no features\.12\.weight", alex | {"features.12.weight": np.zeros(1, np.float32)}, alex_linear),
        (r"alex\.pth.*: lin1\.model\.1\.weight is of shape \(1, 128, 1, 1\), not \(1, 192", alex, linear("vgg")),
        (r"lin4\.model\.1\.weight is missing", alex, without(alex_linear, "lin4.model.1.weight")),
        (r"has no lin5\.model\.1\.weight", alex, alex_linear | {"lin5.model.1.weight": np.zeros(1, np.float32)}),
    )
    for message, *tensors in cases:
        for path, state in zip((tmp_path / "first", tmp_path / "second"), tensors, strict=True):
            write_state(path, state)
        with pytest.raises(UserError, match=message) as error:
            lpips.load(tmp_path / "first", tmp_path / "second")
        assert "\n" not in str(error.value)


def test_a_missing_file_is_reported_with_its_source(tmp_path, files):
    missing = tmp_path / "none.pth"
    with pytest.raises(UserError, match=r"No such file.*alexnet-owt-7be5be79\.pth or .*vgg16-397923af\.pth") as error:
        lpips.load(missing, files["alex"][1])
    assert str(missing) in str(error.value)
    for name, paths in files.items():
        with pytest.raises(UserError, match=rf"No such file.*lpips/weights/v0\.1/{name}\.pth") as error:
            lpips.load(paths[0], missing)
        assert str(missing) in str(error.value)


# --- against the authors' package ---


@pytest.mark.parity
@pytest.mark.parametrize("name", LAYERS)
def test_distance_is_that_of_the_package(monkeypatch, files, name):
    torch = pytest.importorskip("torch")
    # The package imports torchvision for the backbone only, and its wheel requires a PyTorch with CUDA.
    fake = types.ModuleType("torchvision")
    fake.models = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    theirs = pytest.importorskip("lpips")
    layers, inputs = [], 3
    for layer in LAYERS[name]:
        if layer == "pool":
            layers.append(torch.nn.MaxPool2d(3 if name == "alex" else 2, 2))
        else:
            width, kernel, stride, padding = (*layer, 1, 1) if len(layer) == 2 else layer
            layers += [torch.nn.Conv2d(inputs, width, kernel, stride, padding), torch.nn.ReLU()]
            inputs = width
    features = torch.nn.Sequential(*layers)
    tensors = {key: torch.tensor(tensor) for key, tensor in backbone(name).items() if key.startswith("features.")}
    features.load_state_dict({key.removeprefix("features."): tensor for key, tensor in tensors.items()})
    make = {"alex": "alexnet", "vgg": "vgg16"}[name]
    monkeypatch.setattr(
        theirs.pretrained_networks.tv, make, lambda **_: types.SimpleNamespace(features=features), raising=False
    )
    model = theirs.LPIPS(net=name, verbose=False)
    params = lpips.load(files[name][0], Path(theirs.__file__).parent / "weights" / "v0.1" / f"{name}.pth")
    for height, width in ((64, 64), (LEAST[name], 45)):
        a, b = images(2, height, width, 3)
        b[0] = np.clip(a[0] + 0.1 * b[0], -1, 1)
        with torch.no_grad():
            expected = model(*(torch.tensor(x).permute(0, 3, 1, 2) for x in (a, b))).flatten().numpy()
        assert expected[1] > expected[0] > 0
        np.testing.assert_allclose(distance(params, a, b), expected, rtol=1e-5)
