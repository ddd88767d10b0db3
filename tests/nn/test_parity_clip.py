"""CLIP gives the numbers of Hugging Face's model with the same weights, and its ResNet those of PyTorch's layers."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.nn import functional as F  # noqa: E402

from diffjax.nn import clip  # noqa: E402
from diffjax.nn.pretrained import clip_checkpoint  # noqa: E402
from diffjax.typing import NO_TOKEN  # noqa: E402

pytestmark = pytest.mark.parity

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


def array(x):
    return x.detach().numpy()


def randomise(model):
    """Nothing stays at zero or one; embeddings are far apart."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 0:
                continue
            plain = p.ndim == 1 or "embedding" in name
            p.copy_(p + 0.3 * torch.randn_like(p) if plain else torch.randn_like(p) / p[0].numel() ** 0.5)
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.3 * torch.randn_like(b))
            if name.endswith("running_var"):
                b.copy_(torch.exp(0.3 * torch.randn_like(b)))
    return model.eval()


# image and patch size, heads of images and texts, activation, the end token of the config
SIZES = [
    (16, 4, 3, 2, "quick_gelu", 49),
    (21, 7, 2, 4, "gelu", 49),
    (16, 8, 4, 1, "quick_gelu", 2),  # as published configs have it: the end is then the largest token
]


@pytest.mark.parametrize("size,patch,image_heads,text_heads,activation,end", SIZES)
def test_whole_forward_pass(tmp_path, size, patch, image_heads, text_heads, activation, end):
    file = "pytorch_model.bin" if activation == "gelu" else "model.safetensors"
    text = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": text_heads}
    text |= {"vocab_size": 50, "max_position_embeddings": 9, "hidden_act": activation}
    text |= {"bos_token_id": 48, "eos_token_id": end, "pad_token_id": 0}
    vision = {"hidden_size": 24, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": image_heads}
    vision |= {"image_size": size, "patch_size": patch, "hidden_act": activation}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = randomise(transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    if file == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / file)

    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, size, size, 3)).astype(np.float32)
    lengths = np.array([9, 5, 2])[:, None]
    tokens = rng.integers(1, 48, (3, 9)).astype(np.int32)
    tokens[:, 0], place = 48, np.arange(9)
    tokens = np.where(place == lengths - 1, 49, tokens)
    with torch.no_grad():
        pixels = torch.tensor(((images + 1) / 2 - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)
        padded = torch.tensor(np.where(place < lengths, tokens, 0))  # as OpenAI's code pads
        theirs = model(input_ids=padded.long(), pixel_values=pixels)
        states = model.text_model(input_ids=padded.long()).last_hidden_state.numpy()

    found = clip_checkpoint.load(tmp_path)
    params = found.variables["params"]["model"]
    image = jax.jit(found.image_encoder.apply)({"params": params["image"]}, images)
    ours = np.where(place < lengths, tokens, NO_TOKEN)
    own_states, text = jax.jit(found.text_encoder.apply)({"params": params["text"]}, ours)
    np.testing.assert_allclose(own_states[place < lengths], states[place < lengths], atol=1e-4)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    np.testing.assert_allclose(image, array(theirs.image_embeds), atol=1e-4)
    np.testing.assert_allclose(text, array(theirs.text_embeds), atol=1e-4)
    logits = np.exp(clip.clamped_logit_scale(params["log_scale"])) * image @ text.T
    expected = array(theirs.logits_per_image)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_loss():
    """The mean over the pairs of a batch equals the loss of the peer."""
    from transformers.models.clip import modeling_clip

    rng = np.random.default_rng(0)
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 6, 4)))
    ours, _ = clip.clip_loss(images, texts, images, texts, np.arange(6), 20.0)
    loss = getattr(modeling_clip, "image_text_contrastive_loss", None) or modeling_clip.clip_loss
    np.testing.assert_allclose(ours.mean(), loss(torch.tensor(20.0 * texts @ images.T)), rtol=1e-4)


# --- the ResNet, of PyTorch's layers ---


class Unit(torch.nn.Module):
    """A convolution and its batch norm."""

    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__()
        self.conv = torch.nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = torch.nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(self.conv(x))


class TorchBlock(torch.nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.units = torch.nn.ModuleList([Unit(inputs, width, 1), Unit(width, width, 3), Unit(width, 4 * width, 1)])
        self.skip = Unit(inputs, 4 * width, 1) if stride > 1 or inputs != 4 * width else None
        self.stride = stride

    def forward(self, x):
        h = F.relu(self.units[1](F.relu(self.units[0](x))))
        h = self.units[2](F.avg_pool2d(h, self.stride))
        return F.relu(h + (x if self.skip is None else self.skip(F.avg_pool2d(x, self.stride))))


class TorchResNet(torch.nn.Module):
    def __init__(self, layers, width, heads, dimensions, side):
        super().__init__()
        half = width // 2
        self.stem = torch.nn.ModuleList([Unit(3, half, 3, 2), Unit(half, half, 3), Unit(half, width, 3)])
        self.blocks, inputs = torch.nn.ModuleDict(), width
        for stage, blocks in enumerate(layers):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                self.blocks[f"stage_{stage}_block_{i}"] = TorchBlock(inputs, width * 2**stage, stride)
                inputs = 4 * width * 2**stage
        self.place = torch.nn.Parameter(torch.zeros(side**2 + 1, inputs))
        self.attention = torch.nn.MultiheadAttention(inputs, heads, batch_first=True)
        self.out = torch.nn.Linear(inputs, dimensions)

    def forward(self, x):
        for unit in self.stem:
            x = F.relu(unit(x))
        x = F.avg_pool2d(x, 2)
        for block in self.blocks.values():
            x = block(x)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.place
        # CLIP projects to the embedding inside the attention; here the attention's output projection is the identity.
        return self.out(self.attention(x[:, :1], x, x, need_weights=False)[0][:, 0])


def unit_variables(unit, conv, norm):
    """Returns parameters and statistics of a convolution and its norm."""
    kernel = {"kernel": array(unit.conv.weight).transpose(2, 3, 1, 0)}
    params = {conv: kernel, norm: {"scale": array(unit.norm.weight), "bias": array(unit.norm.bias)}}
    running = {"mean": array(unit.norm.running_mean).copy(), "var": array(unit.norm.running_var).copy()}
    return params, {norm: running}


def resnet_variables(model):
    params, statistics = {}, {}
    for i, unit in enumerate(model.stem):
        unit_params, running = unit_variables(unit, f"conv_{i}", f"norm_{i}")
        params, statistics = params | unit_params, statistics | running
    for name, block in model.blocks.items():
        units = {str(i): unit for i, unit in enumerate(block.units)}
        units |= {"skip": block.skip} if block.skip is not None else {}
        found = [unit_variables(unit, f"conv_{i}", f"norm_{i}") for i, unit in units.items()]
        params[name] = {key: value for unit_params, _ in found for key, value in unit_params.items()}
        statistics[name] = {key: value for _, running in found for key, value in running.items()}
    weights, biases = (np.split(array(p), 3) for p in (model.attention.in_proj_weight, model.attention.in_proj_bias))
    pool = {name: {"kernel": w.T, "bias": b} for name, w, b in zip("qkv", weights, biases, strict=True)}
    pool |= {"place": array(model.place), "out": {"kernel": array(model.out.weight).T, "bias": array(model.out.bias)}}
    return {"params": params | {"pool": pool}, "batch_stats": statistics}


def test_modified_resnet():
    layers, width, heads, dimensions = (2, 1, 3, 1), 8, 4, 10
    model = randomise(TorchResNet(layers, width, heads, dimensions, side=2))
    with torch.no_grad():
        model.attention.out_proj.weight.copy_(torch.eye(len(model.attention.out_proj.weight)))
        model.attention.out_proj.bias.zero_()
    ours = clip.ModifiedResNet(
        layers, heads, dimensions, width, pixel_mean=tuple(MEAN.tolist()), pixel_std=tuple(STD.tolist())
    )
    variables = resnet_variables(model)
    images = np.random.default_rng(0).uniform(-1, 1, (4, 64, 64, 3)).astype(np.float32)
    pixels = torch.tensor(((images + 1) / 2 - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(pixels).numpy()
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(jax.jit(ours.apply)(variables, images), expected, atol=1e-4)

        trained = model.train()(pixels).numpy()
    found, after = jax.jit(lambda *arguments: ours.apply(*arguments, lambda tree: tree, mutable=["batch_stats"]))(
        variables, images
    )
    np.testing.assert_allclose(found, trained, atol=1e-4, rtol=1e-4)
    remembered = resnet_variables(model)["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), after["batch_stats"], remembered)
