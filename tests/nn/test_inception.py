"""FID's InceptionV3 against PyTorch, its resizing against NumPy, and errors for other files."""

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.nn.pretrained import inception
from tests.nn.test_efficientnet import write_state


class Shapes:
    """Operations on widths instead of tensors: the network applied to them records each convolution's shape."""

    def __init__(self):
        self.convs = {}

    def conv(self, x, name, width, kernel=1, *, stride=1, padding=0):
        self.convs[name] = (width, x, *np.broadcast_to(kernel, 2).tolist())
        return width

    def cat(self, xs):
        return sum(xs)

    def shrink(self, x):
        return x

    average = maximum = shrink


def network(op, x):
    """Returns the Mixed_6d.branch1x1 and last maps of torchvision's InceptionV3, changed as pytorch-fid's.

    It was compared with pytorch-fid 0.3.0 itself, which requires torchvision and so a PyTorch with CUDA.
    """

    def chain(x, name, *convs):
        """Applies successive convolutions (width, kernel), padded to keep the size of the map."""
        for i, (width, *kernel) in enumerate(convs, 1):
            kernel = kernel if len(kernel) == 2 else kernel * 2
            x = op.conv(x, f"{name}_{i}", width, kernel, padding=[side // 2 for side in kernel])
        return x

    x = op.conv(x, "Conv2d_1a_3x3", 32, 3, stride=2)
    x = op.conv(x, "Conv2d_2a_3x3", 32, 3)
    x = op.shrink(op.conv(x, "Conv2d_2b_3x3", 64, 3, padding=1))
    x = op.conv(x, "Conv2d_3b_1x1", 80)
    x = op.shrink(op.conv(x, "Conv2d_4a_3x3", 192, 3))
    for name, width in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        ones = op.conv(x, f"{name}.branch1x1", 64)
        fives = chain(x, f"{name}.branch5x5", (48, 1), (64, 5))
        threes = chain(x, f"{name}.branch3x3dbl", (64, 1), (96, 3), (96, 3))
        x = op.cat([ones, fives, threes, op.conv(op.average(x), f"{name}.branch_pool", width)])
    threes = op.conv(x, "Mixed_6a.branch3x3", 384, 3, stride=2)
    doubles = chain(x, "Mixed_6a.branch3x3dbl", (64, 1), (96, 3))
    doubles = op.conv(doubles, "Mixed_6a.branch3x3dbl_3", 96, 3, stride=2)
    x = op.cat([threes, doubles, op.shrink(x)])
    for name, c in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        ones = op.conv(x, f"{name}.branch1x1", 192)
        if name == "Mixed_6d":
            spatial = ones
        sevens = chain(x, f"{name}.branch7x7", (c, 1), (c, 1, 7), (192, 7, 1))
        doubles = chain(x, f"{name}.branch7x7dbl", (c, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7))
        x = op.cat([ones, sevens, doubles, op.conv(op.average(x), f"{name}.branch_pool", 192)])
    threes = op.conv(chain(x, "Mixed_7a.branch3x3", (192, 1)), "Mixed_7a.branch3x3_2", 320, 3, stride=2)
    sevens = chain(x, "Mixed_7a.branch7x7x3", (192, 1), (192, 1, 7), (192, 7, 1))
    sevens = op.conv(sevens, "Mixed_7a.branch7x7x3_4", 192, 3, stride=2)
    x = op.cat([threes, sevens, op.shrink(x)])
    for name, pool in (("Mixed_7b", op.average), ("Mixed_7c", op.maximum)):
        parts = [op.conv(x, f"{name}.branch1x1", 320)]
        threes = chain(x, f"{name}.branch3x3", (384, 1))
        doubles = chain(x, f"{name}.branch3x3dbl", (448, 1), (384, 3))
        for h, title in ((threes, "branch3x3_2"), (doubles, "branch3x3dbl_3")):
            parts.append(op.conv(h, f"{name}.{title}a", 384, (1, 3), padding=(0, 1)))
            parts.append(op.conv(h, f"{name}.{title}b", 384, (3, 1), padding=(1, 0)))
        x = op.cat([*parts, op.conv(pool(x), f"{name}.branch_pool", 192)])
    return spatial, x


@pytest.fixture(scope="module")
def state():
    """Random tensors with the names of PyTorch."""
    rng, shapes, found = np.random.default_rng(0), Shapes(), {}
    assert network(shapes, 3) == (192, 2048)
    for name, shape in shapes.convs.items():
        found[f"{name}.conv.weight"] = rng.normal(0, 1.4 / np.sqrt(np.prod(shape[1:])), shape)
        moments = {"weight": (0.7, 1.3), "bias": (-0.3, 0.3), "running_mean": (-0.3, 0.3), "running_var": (0.7, 1.3)}
        found |= {f"{name}.bn.{key}": rng.uniform(*ends, shape[0]) for key, ends in moments.items()}
    found |= {"fc.weight": rng.normal(0, 0.03, (1008, 2048)), "fc.bias": rng.normal(size=1008)}
    return {key: value.astype(np.float32) for key, value in found.items()}


@pytest.fixture(scope="module")
def params(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("inception") / "file"
    write_state(path, state | {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(3)})
    return inception.load(path)


def images_of(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


features = jax.jit(inception.features)


def test_parameters_and_feature_shapes(params, state):
    assert len(params) == 94 + 1 and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    learned = [value.size for key, value in state.items() if "running" not in key]
    assert sum(learned) == 23_834_568 + 8 * 2049  # torchvision's without its auxiliary head, and eight more classes
    found = jax.eval_shape(inception.features, params, images_of(2, 28, 20, 1))
    assert [part.shape for part in found] == [(2, 2048), (2, 17 * 17 * 7), (2, 1008)]


@pytest.mark.slow  # compiles the whole network; the parity test compares its features with PyTorch
def test_features_of_grey_images(params):
    found = features(params, images_of(2, 28, 20, 1))
    assert all(np.isfinite(part).all() and part.std() > 0 for part in found)
    assert np.min(found.pooled) >= 0 and np.min(found.spatial) == 0


def test_grey_images_are_rgb_of_equal_channels(monkeypatch):
    """The inputs of the first block are compared."""
    inputs = []

    def spy(params, block, branch, x):
        inputs.append(x)
        raise StopIteration

    monkeypatch.setattr(inception, "_branch", spy)
    grey = images_of(2, 28, 20, 1)
    for images in (grey, grey.repeat(3, -1)):
        with pytest.raises(StopIteration):
            inception.features({}, images)
    np.testing.assert_array_equal(*inputs)
    assert inputs[0].shape == (2, 299, 299, 3)
    np.testing.assert_array_equal(inputs[0][:, 0, 0, 1], (grey[:, 0, 0, 0] - 128.0) / 128)


@pytest.mark.parametrize("height, width", [(28, 45), (320, 299), (1, 700)])
def test_resizing_is_that_of_tensorflow(height, width):
    """TensorFlow 1's ResizeBilinear as defined in its documentation, in integer arithmetic and float64."""
    images = images_of(2, height, width, 2)
    x, i = images.astype(np.float64), np.arange(299)
    row, down = np.divmod(i * height, 299)
    column, right = np.divmod(i * width, 299)
    below, after = np.minimum(row + 1, height - 1), np.minimum(column + 1, width - 1)
    down, right = down[:, None, None] / 299, right[:, None] / 299
    top, bottom = (x[:, rows][:, :, column] * (1 - right) + x[:, rows][:, :, after] * right for rows in (row, below))
    expected = top * (1 - down) + bottom * down
    for inputs in (images, images.astype(np.float32)):
        found = jax.jit(inception.resize)(inputs)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=0.02)
    if (height, width) == (320, 299):  # a side of the final length is unchanged
        np.testing.assert_array_equal(found[:, 0], images[:, 0])


def test_images_of_another_type_are_reported():
    for images in (np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            inception.features({}, images)


@pytest.mark.slow
def test_files_of_other_networks_are_reported(tmp_path, state):
    small = {key: value for key, value in state.items() if key.startswith(("Conv2d", "Mixed_5b"))}
    changes = {
        r"Conv2d_1a_3x3\.bn\.weight is missing": {},
        r"Mixed_5c\.branch1x1\.bn\.weight is missing": small,
        r"Conv2d_3b_1x1\.conv\.weight is of shape \(80, 3, 1, 1\), not \(80, 64, 1, 1\)": small
        | {"Conv2d_3b_1x1.conv.weight": np.zeros((80, 3, 1, 1), np.float32)},
        r"has no AuxLogits\.fc\.bias": state | {"AuxLogits.fc.bias": np.zeros(1008, np.float32)},  # torchvision's
        r"fc\.weight is of shape \(1000, 2048\)": state | {"fc.weight": np.zeros((1000, 2048), np.float32)},
    }
    for message, tensors in changes.items():
        write_state(tmp_path / "file", tensors or {"other": np.zeros(1, np.float32)})
        with pytest.raises(UserError, match=message) as error:
            inception.load(tmp_path / "file")
        assert "\n" not in str(error.value)


def test_a_missing_file_is_reported_with_its_source(tmp_path):
    with pytest.raises(UserError, match=r"No such file.*pt_inception-2015-12-05-6726825d\.pth$") as error:
        inception.load(tmp_path / "none.pth")
    assert str(tmp_path / "none.pth") in str(error.value) and inception.WEIGHTS_URL in str(error.value)


# --- against PyTorch ---


@pytest.mark.slow
@pytest.mark.parity
def test_features_match_pytorch(tmp_path, state):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    tensors = {key: torch.tensor(value) for key, value in state.items()}

    class Torch:
        def conv(self, x, name, width, kernel=1, *, stride=1, padding=0):
            x = F.conv2d(x, tensors[f"{name}.conv.weight"], stride=stride, padding=padding)
            moments = [tensors[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
            return F.relu(F.batch_norm(x, *moments, eps=0.001))

        def cat(self, xs):
            return torch.cat(xs, 1)

        def shrink(self, x):
            return F.max_pool2d(x, 3, stride=2)

        def average(self, x):
            return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

        def maximum(self, x):
            return F.max_pool2d(x, 3, stride=1, padding=1)

    torch.save(tensors, tmp_path / "file.pth")
    images = images_of(2, 299, 299, 3)  # unchanged by resizing
    with torch.no_grad():
        x = (torch.tensor(images).permute(0, 3, 1, 2).float() - 128) / 128
        spatial, last = network(Torch(), x)
        pooled = last.mean((2, 3))
        expected = pooled, spatial[:, :7].permute(0, 2, 3, 1).flatten(1), pooled @ tensors["fc.weight"].T
    found = features(inception.load(tmp_path / "file.pth"), images)
    for ours, theirs in zip(found, expected, strict=True):
        theirs = theirs.numpy()
        assert ours.shape == theirs.shape and theirs.std() > 0.01
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
