"""Networks with the names and the layout of OpenAI's code, in PyTorch: U-Nets, ADM's classifier, GLIDE's."""

import math

import torch
from torch import nn
from torch.nn import functional


def norm(channels):
    return nn.GroupNorm(32, channels)


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def pooled(x):
    return functional.avg_pool2d(x, 2)


def enlarged(x):
    return functional.interpolate(x, scale_factor=2, mode="nearest")


class Residual(nn.Module):
    """Residual block; `change` resamples both branches."""

    def __init__(self, inputs, outputs, width, scale_shift, change=None):
        super().__init__()
        self.scale_shift, self.change = scale_shift, change or (lambda x: x)
        self.in_layers = nn.Sequential(norm(inputs), nn.SiLU(), conv(inputs, outputs))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, outputs * (1 + scale_shift)))
        self.out_layers = nn.Sequential(norm(outputs), nn.SiLU(), nn.Dropout(0.1), conv(outputs, outputs))
        self.skip_connection = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)

    def forward(self, x, emb, context):
        first, activation, layer = self.in_layers
        h = layer(self.change(activation(first(x))))
        second, *rest = self.out_layers
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = second(h) * (1 + scale) + shift
        else:
            h = second(h + emb)
        return self.skip_connection(self.change(x)) + nn.Sequential(*rest)(h)


def attend(qkv, heads, order, context=None):
    """Returns attention [B, C, T] of fused queries, keys and values [B, 3C, T], and of keys and values of a context."""

    def parts(fused, count):
        shape = (len(fused), heads, count, -1) if order == "by_head" else (len(fused), count, heads, -1)
        split = fused.reshape(*shape, fused.shape[-1])
        return split.unbind(2 if order == "by_head" else 1)

    q, k, v = parts(qkv, 3)
    if context is not None:
        keys, values = parts(context, 2)
        k, v = torch.cat([keys, k], -1), torch.cat([values, v], -1)
    weights = torch.softmax(torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(q.shape[2]), -1)
    return torch.einsum("bhts,bhcs->bhct", weights, v).reshape(len(qkv), -1, qkv.shape[-1])


class Attention(nn.Module):
    def __init__(self, channels, heads, order, dims, context):
        super().__init__()
        layer = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
        self.heads, self.order, self.dims = heads, order, dims
        self.norm, self.qkv = norm(channels), layer(channels, 3 * channels, 1)
        if context:
            self.encoder_kv = nn.Conv1d(context, 2 * channels, 1)
        self.proj_out = layer(channels, channels, 1)

    def forward(self, x, emb, context):
        h = self.norm(x)
        qkv = self.qkv(h.flatten(2) if self.dims == 1 else h).flatten(2)
        kv = None if context is None else self.encoder_kv(context.transpose(1, 2))
        h = attend(qkv, self.heads, self.order, kv)
        return x + self.proj_out(h if self.dims == 1 else h.reshape(x.shape)).reshape(x.shape)


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = conv(channels, channels, stride=2)

    def forward(self, x, emb, context):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x, emb, context):
        return self.conv(enlarged(x))


class First(nn.Conv2d):
    def forward(self, x, emb, context):
        return super().forward(x)


class AttentionPool(nn.Module):
    def __init__(self, side, channels, heads, outputs):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, side**2 + 1))
        self.qkv_proj, self.c_proj = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, outputs, 1)

    def forward(self, x):
        x = x.flatten(2)
        x = torch.cat([x.mean(-1, keepdim=True), x], -1) + self.positional_embedding
        return self.c_proj(attend(self.qkv_proj(x), self.heads, "contiguous"))[:, :, 0]


def run(layers, x, emb, context):
    for layer in layers:
        x = layer(x, emb, context)
    return x


class UNet(nn.Module):
    """U-Net, or with `pool_side` the classifier: its encoder with attention pooling of that side.

    Args:
      inputs, outputs: channels, or classes.
      attends: levels with attention.
      heads: attention heads for a number of channels.
      order: queries, keys and values by head, or contiguous.
      dims: dimensions of the convolutions of attention.
      residual: whether residual blocks change the resolution.
      classes: rows of the table of labels.
      context: width of a context.
    """

    def __init__(
        self, inputs, outputs, *, channels=32, multipliers=(1, 2), blocks=1, attends=(1,), heads=lambda c: c // 32,
        order="by_head", dims=1, residual=True, scale_shift=True, classes=0, context=0, pool_side=0,
    ):  # fmt: skip
        super().__init__()
        width = 4 * channels
        self.channels = channels

        def block(inputs, outputs, change=None):
            return Residual(inputs, outputs, width, scale_shift, change)

        def attention(c):
            return Attention(c, heads(c), order, dims, context)

        self.time_embed = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        if classes:
            self.label_emb = nn.Embedding(classes, width)
        now = int(channels * multipliers[0])
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(inputs, now, 3, padding=1)])])
        skips = [now]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                layers = [block(now, int(channels * multiplier))]
                now = int(channels * multiplier)
                self.input_blocks.append(nn.ModuleList(layers + [attention(now)] * (level in attends)))
                skips.append(now)
            if level < len(multipliers) - 1:
                layer = block(now, now, pooled) if residual else Down(now)
                self.input_blocks.append(nn.ModuleList([layer]))
                skips.append(now)
        self.middle_block = nn.ModuleList([block(now, now), attention(now), block(now, now)])
        if pool_side:
            self.out = nn.Sequential(norm(now), nn.SiLU(), AttentionPool(pool_side, now, heads(now), outputs))
            return
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for i in range(blocks + 1):
                layers = [block(now + skips.pop(), int(channels * multiplier))]
                now = int(channels * multiplier)
                layers += [attention(now)] * (level in attends)
                if level and i == blocks:
                    layers.append(block(now, now, enlarged) if residual else Up(now))
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(norm(now), nn.SiLU(), conv(now, outputs))

    def forward(self, x, t, label=None, emb=0.0, context=None):
        half = self.channels // 2
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = emb + self.time_embed(torch.cat([angles.cos(), angles.sin()], -1))
        emb = emb if label is None else emb + self.label_emb(label)
        skips = []
        for layers in self.input_blocks:
            x = run(layers, x, emb, context)
            skips.append(x)
        x = run(self.middle_block, x, emb, context)
        for layers in self.output_blocks if hasattr(self, "output_blocks") else ():
            x = run(layers, torch.cat([x, skips.pop()], 1), emb, context)
        return self.out(x)


class TextBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.ln_1, self.ln_2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_qkv": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x):
        qkv = self.attn.c_qkv(self.ln_1(x)).transpose(1, 2)
        x = x + self.attn.c_proj(attend(qkv, self.heads, "by_head").transpose(1, 2))
        return x + self.mlp.c_proj(functional.gelu(self.mlp.c_fc(self.ln_2(x))))


class GLIDE(UNet):
    """GLIDE's U-Net, with its text transformer."""

    def __init__(self, inputs, outputs, *, vocabulary, length, width, layers, heads_of_text, **options):
        super().__init__(inputs, outputs, context=width, **options)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([TextBlock(width, heads_of_text) for _ in range(layers)])
        self.final_ln, self.token_embedding = nn.LayerNorm(width), nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.padding_embedding = nn.Parameter(torch.randn(length, width))
        self.transformer_proj = nn.Linear(width, 4 * self.channels)

    def forward(self, x, t, tokens, mask):
        states = self.token_embedding(tokens) + self.positional_embedding
        states = torch.where(mask[..., None], states, self.padding_embedding)
        for block in self.transformer.resblocks:
            states = block(states)
        states = self.final_ln(states)
        return super().forward(x, t, emb=self.transformer_proj(states[:, -1]), context=states)
