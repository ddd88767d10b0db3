"""Files of OpenAI's code, of random weights: an import computes the same outputs, and an export writes the same file.

The networks are of tests/openai_networks.py, with two heads of attention.
"""

import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")

from diffjax import cli  # noqa: E402
from diffjax.runs.loading import load  # noqa: E402
from tests.openai_networks import GLIDE, UNet  # noqa: E402
from tests.parity import randomise  # noqa: E402

pytestmark = pytest.mark.parity

SMALL = {
    "data.image_size": 16,
    "model.channels": 32,
    "model.multipliers": (1, 2),
    "model.blocks": 1,
    "model.attention_resolutions": (8,),
    "model.head_channels": 32,
}
TEXT = {
    "text.vocabulary": 300,
    "text.length": 6,
    "conditions.caption.width": 32,
    "conditions.caption.layers": 2,
    "conditions.caption.heads": 2,
}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 16, 16, 3)).astype(np.float32)
LOW = RNG.uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
IMAGE = RNG.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
MASK = np.broadcast_to((np.arange(16) < 6)[None, :, None, None], (2, 16, 16, 1)).astype(np.float32)  # 1: known
LABEL = np.array([3, 1], np.int32)
TOKENS = np.array([[5, 299, 17, -1, -1, -1], [-1] * 6], np.int32)  # the second: no caption


def channels_first(x):
    return torch.tensor(np.moveaxis(np.broadcast_to(x, x.shape), -1, 1).copy())


def signal(schedule, t, timesteps):
    """Returns alpha_bar of level t."""
    if schedule == "linear":
        betas = np.linspace(1e-4, 0.02, timesteps) * 1000 / timesteps
    else:
        squared = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - squared[1:] / squared[:-1], 0.999)
    return np.prod(1 - betas[:t])


def from_eps(network, schedule, *, timesteps=1000, scale=1.0):
    """Returns the estimate of x_0 at timestep T / 2 of a network that predicts eps."""

    def estimate(*inputs):
        t = timesteps // 2
        alpha_bar = signal(schedule, t, timesteps)
        eps = network(torch.full((2,), (t - 1) * scale), *inputs)[:, :3]
        return (channels_first(X) - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)

    return estimate


def preconditioned(network, *, boundary):
    """Returns the estimate of x_0 of a consistency model or its teacher, at the middle of EDM's times."""

    def estimate(*inputs):
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        sigma = ((low + high) / 2) ** 7
        skip = 0.25 / ((sigma - 0.002 * boundary) ** 2 + 0.25)
        out = (sigma - 0.002 * boundary) * 0.5 / np.sqrt(sigma**2 + 0.25)
        x = channels_first(X)
        return skip * x + out * network(torch.full((2,), 250 * np.log(sigma)), *inputs, x=x / np.sqrt(sigma**2 + 0.25))

    return estimate


def case(file, network, estimate, conditions, inputs=(), **fields):
    """Returns a case: config, its changes, the network, its estimate of x_0, and the conditions of both."""
    return file, fields, network, estimate, conditions, inputs


def labelled(model):
    return lambda t, label, x=None: model(channels_first(X) if x is None else x, t.float(), label=label)


def plain(model):
    return lambda t, x=None: model(channels_first(X) if x is None else x, t.float())


def upsampled():
    return torch.nn.functional.interpolate(channels_first(LOW), scale_factor=4, mode="bilinear", align_corners=False)


def with_low_res(model):
    return lambda t, label: model(torch.cat([channels_first(X), upsampled()], 1), t.float(), label=label)


def with_caption(model, *channels):
    x = torch.cat([channels_first(X), *channels], 1)
    tokens, mask = torch.tensor(np.maximum(TOKENS, 0)), torch.tensor(TOKENS >= 0)
    return lambda t: model(x, t.float(), tokens, mask)


def glide(inputs):
    return randomise(
        GLIDE(inputs, 6, heads=lambda c: c // 32, vocabulary=300, length=6, width=32, layers=2, heads_of_text=2)
    )


LABELS = {"label": LABEL}, (torch.tensor(LABEL).long(),)
KNOWN = channels_first(IMAGE * MASK), channels_first(MASK)


def adm():
    net = randomise(UNet(3, 6, classes=5))
    return case("adm.py:256", net, from_eps(labelled(net), "linear"), *LABELS, **{"data.num_classes": 5})


def adm_new_order():
    net = randomise(UNet(3, 6, classes=5, order="contiguous"))
    return case("adm.py:64", net, from_eps(labelled(net), "cosine"), *LABELS, **{"data.num_classes": 5})


def adm_heads():
    """Half the base width at the first level, and a number of heads."""
    net = randomise(UNet(3, 6, classes=5, channels=64, multipliers=(0.5, 1), heads=lambda c: 2))
    fields = {"data.num_classes": 5, "model.channels": 64, "model.multipliers": (0.5, 1), "model.heads": 2}
    return case("adm.py:128", net, from_eps(labelled(net), "linear"), *LABELS, **fields)


def adm_upsampler():
    net = randomise(UNet(6, 6, classes=5))
    conditions, inputs = LABELS
    fields = {"data.num_classes": 5}
    estimate = from_eps(with_low_res(net), "linear")
    return case("adm.py:128_512", net, estimate, {**conditions, "low_res_image": LOW}, inputs, **fields)


def improved():
    net = randomise(UNet(3, 6, residual=False, heads=lambda c: 2))
    return case(
        "improved_ddpm.py:cifar10_vlb",
        net,
        from_eps(plain(net), "cosine", timesteps=4000, scale=0.25),
        {},
        **{"model.heads": 2},
    )


def consistency():
    net = randomise(UNet(3, 3, classes=5, order="contiguous", dims=2))
    estimate = preconditioned(labelled(net), boundary=True)
    return case("consistency.py:imagenet64", net, estimate, *LABELS, **{"data.num_classes": 5})


def edm():
    net = randomise(UNet(3, 3, scale_shift=False, order="contiguous", dims=2))
    return case("consistency.py:edm_lsun", net, preconditioned(plain(net), boundary=False), {})


def glide_base():
    net = glide(3)
    return case("glide.py:base", net, from_eps(with_caption(net), "cosine"), {"tokens": TOKENS}, **TEXT)


def glide_upsampler_inpainting():
    net = glide(10)
    estimate = from_eps(with_caption(net, *KNOWN, upsampled()), "linear")
    conditions = {"tokens": TOKENS, "low_res_image": LOW, "image": IMAGE, "mask": MASK}
    return case("glide.py:upsampler_inpainting", net, estimate, conditions, **TEXT)


CASES = (
    adm,
    adm_new_order,
    adm_heads,
    adm_upsampler,
    improved,
    consistency,
    edm,
    glide_base,
    glide_upsampler_inpainting,
)


def launch(*arguments):
    assert cli.main(["launch.py", *arguments]) == 0


def flags(file, fields):
    changes = {**SMALL, **fields}
    if "model.heads" in changes:
        del changes["model.head_channels"]
    return [f"--config=configs/published/{file}", *(f"--config.{name}={value}" for name, value in changes.items())]


@pytest.fixture(scope="module", params=CASES, ids=[each.__name__ for each in CASES])
def imported(request, tmp_path_factory):
    """Returns a case, and its folder with the file, the run and the export."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    file, fields, network, *rest = request.param()
    torch.save(network.state_dict(), folder / "model.pt")
    launch("import", f"--source={folder / 'model.pt'}", f"--workdir={folder / 'run'}", *flags(file, fields))
    launch("export", f"--workdir={folder / 'run'}", f"--out={folder / 'exported'}", "--format=safetensors")
    return network, *rest, folder


def test_an_import_estimates_the_same_image(imported):
    _, estimate, conditions, inputs, folder = imported
    run = load(folder / "run")
    timesteps, first = run.config.diffusion.timesteps, run.system.noise_schedule.first
    middle = (timesteps + first) / 2 if run.config.diffusion.continuous else timesteps // 2
    settings = run.system.make_settings(
        {**run.config.sampler.to_dict(), "keep_known": "mask" not in conditions},
        steps=1,
        name="ddim",
        grid=f"times({middle})",
        threshold="none",
        guidance=1.0,
    )
    keys = jax.random.split(jax.random.key(0), 2)
    sample = jax.jit(functools.partial(run.system.sample, run.variables))
    found = np.asarray(sample(keys, {"latent": X, **conditions}, settings))
    with torch.no_grad():
        expected = np.moveaxis(estimate(*inputs).numpy(), 1, -1)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


def test_an_export_is_the_file_bit_for_bit(imported):
    network, *_, folder = imported
    exported = load_file(folder / "exported" / "model.safetensors")
    expected = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    assert exported.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)


def test_an_import_of_an_export_is_the_run(imported):
    *_, folder = imported
    launch(
        "import",
        f"--source={folder / 'exported' / 'model.safetensors'}",
        f"--config={folder / 'exported' / 'config.json'}",
        f"--workdir={folder / 'again'}",
    )
    before, after = (load_file(folder / name / "weights.safetensors") for name in ("run", "again"))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    configs = [json.loads((folder / name / "config.json").read_text()) for name in ("run", "again")]
    assert configs[0] == configs[1]


def test_a_classifier(tmp_path):
    network = randomise(UNet(3, 7, pool_side=8))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    changes = flags("adm_classifier.py:64", {"data.num_classes": 7})
    launch("import", f"--source={tmp_path / 'model.pt'}", f"--workdir={tmp_path / 'run'}", *changes)
    run = load(tmp_path / "run")
    noise = run.system.schedule(np.float32(500))
    found = jax.jit(run.system.classify)(run.variables, X, noise)
    with torch.no_grad():
        expected = network(channels_first(X), torch.full((2,), 499.0)).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)
    launch("export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'exported'}", "--format=safetensors")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert exported.keys() == network.state_dict().keys()
    assert all((exported[name] == tensor.numpy()).all() for name, tensor in network.state_dict().items())
