"""CLIP gives the numbers of Hugging Face's model with the same weights, and its ResNet those of PyTorch's layers.

Weights are read by the tables that read published files.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.nn import functional as F  # noqa: E402

from diffjax.nn import clip  # noqa: E402
from diffjax.nn.pretrained import clip_checkpoint  # noqa: E402
from diffjax.published.tables import clip as clip_tables  # noqa: E402
from diffjax.typing import NO_TOKEN  # noqa: E402
from tests import parity  # noqa: E402

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


# image and patch size, heads of images and texts, activation, the end token of the config, padding
SIZES = [
    (16, 4, 3, 2, "quick_gelu", 49, 49),  # as Stable Diffusion 1 pads
    (21, 7, 2, 4, "gelu", 49, 0),  # as OpenAI's code and Stable Diffusion 2 pad
    (16, 8, 4, 1, "quick_gelu", 2, 0),  # as published configs have it: the end is then the largest token
]


@pytest.mark.parametrize("size,patch,image_heads,text_heads,activation,end,padding", SIZES)
def test_whole_forward_pass(tmp_path, size, patch, image_heads, text_heads, activation, end, padding):
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
        padded = torch.tensor(np.where(place < lengths, tokens, padding))
        theirs = model(input_ids=padded.long(), pixel_values=pixels)
        states = model.text_model(input_ids=padded.long()).last_hidden_state.numpy()

    found = clip_checkpoint.load(tmp_path)
    params = found.variables["params"]["model"]
    image = jax.jit(found.image_encoder.apply)({"params": params["image"]}, images)
    ours = np.where(place < lengths, tokens, NO_TOKEN)
    text_encoder = found.text_encoder.clone(padding=padding)
    own_states, text = jax.jit(text_encoder.apply)({"params": params["text"]}, ours)
    np.testing.assert_allclose(own_states, states, atol=1e-4)  # at the padding too
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


# --- the ResNet, of PyTorch's layers, with the names of OpenAI's code ---


def convolution(inputs, outputs, kernel, stride=1):
    return torch.nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class TorchBlock(torch.nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = convolution(inputs, width, 1), torch.nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3), torch.nn.BatchNorm2d(width)
        self.conv3, self.bn3 = convolution(width, outputs, 1), torch.nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = torch.nn.Sequential(convolution(inputs, outputs, 1), torch.nn.BatchNorm2d(outputs))
        self.stride = stride

    def forward(self, x):
        h = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        h = self.bn3(self.conv3(F.avg_pool2d(h, self.stride)))
        return F.relu(h + (x if self.downsample is None else self.downsample(F.avg_pool2d(x, self.stride))))


class TorchPool(torch.nn.Module):
    def __init__(self, side, width, heads, outputs):
        super().__init__()
        self.positional_embedding, self.heads = torch.nn.Parameter(torch.zeros(side**2 + 1, width)), heads
        self.q_proj, self.k_proj, self.v_proj = (torch.nn.Linear(width, width) for _ in "qkv")
        self.c_proj = torch.nn.Linear(width, outputs)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        q, k, v = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0])


class TorchResNet(torch.nn.Module):
    def __init__(self, layers, width, heads, dimensions, side):
        super().__init__()
        widths = [3, width // 2, width // 2, width]
        for i in range(3):
            setattr(self, f"conv{i + 1}", convolution(widths[i], widths[i + 1], 3, 1 if i else 2))
            setattr(self, f"bn{i + 1}", torch.nn.BatchNorm2d(widths[i + 1]))
        inputs, self.stages = width, len(layers)
        for stage, count in enumerate(layers):
            blocks = []
            for i in range(count):
                blocks.append(TorchBlock(inputs, width * 2**stage, 2 if stage and not i else 1))
                inputs = 4 * width * 2**stage
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*blocks))
        self.attnpool = TorchPool(side, inputs, heads, dimensions)

    def forward(self, x):
        for i in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        x = F.avg_pool2d(x, 2)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.attnpool(x)


def read_resnet(model, shapes):
    """Returns the variables of a ResNet, by the table of OpenAI's files."""
    arrays = parity.tensors(torch.nn.ModuleDict({"visual": model}))
    paths = {f"{'params/model/image' if group == 'params' else group}": shapes[group] for group in shapes}
    variables = parity.read(clip_tables.openai(), parity.flat(paths), arrays, ignored=clip_tables.OPENAI_IGNORED)
    return {"params": variables["params"]["model"]["image"], "batch_stats": variables["batch_stats"]}


def test_modified_resnet():
    layers, width, heads, dimensions = (2, 1, 3, 1), 8, 4, 10
    model = randomise(TorchResNet(layers, width, heads, dimensions, side=2))
    ours = clip.ModifiedResNet(
        layers, heads, dimensions, width, pixel_mean=tuple(MEAN.tolist()), pixel_std=tuple(STD.tolist())
    )
    images = np.random.default_rng(0).uniform(-1, 1, (4, 64, 64, 3)).astype(np.float32)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), images)
    variables = read_resnet(model, shapes)
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
    remembered = read_resnet(model, shapes)["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), after["batch_stats"], remembered)
