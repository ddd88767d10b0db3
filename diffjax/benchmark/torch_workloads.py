"""Workloads of the comparison in PyTorch: modules of diffusers and transformers, eager or by torch.compile.

Images are channels_last, AdamW is the fused one, attention is PyTorch's scaled_dot_product_attention, and bfloat16 is
by autocast. Products of float32 may use TF32 on a GPU, as XLA's do.

This file imports no other module of diffjax, so that its process has PyTorch alone.
"""

import copy
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

# Packages of the extra parity, which other modules do not need.
import diffusers as diffusers_library  # pyright: ignore[reportMissingImports]
import torch as torch_library  # pyright: ignore[reportMissingImports]
import transformers as transformers_library  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

torch: Any = torch_library  # whose annotations differ between versions
diffusers: Any = diffusers_library
transformers: Any = transformers_library

Peer = Mapping[str, Any]  # of `cases.peer_of`
Step = Callable[[], Any]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(peer: Peer, *, compiled: bool) -> tuple[Step, int, int, float | None]:
    """Returns a function that computes one step to its end, and what `jax_workloads.Workload` has.

    Args:
      peer: description of the workload.
      compiled: whether the network is compiled by torch.compile.

    Returns:
      The function, the number of parameters, the units per step, and the seconds of compilation, None if eager.
    """
    # "high" is TF32 on GPUs, as jax's default; on some CPUs it is float16.
    torch.set_float32_matmul_precision("high" if DEVICE == "cuda" else "highest")
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as XLA, whatever OMP_NUM_THREADS is
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    builders = {
        "train": _train_denoiser,
        "train_clip": _train_clip,
        "reconstruct": _reconstruct,
        "predict": _predict,
        "sample": _sample,
        "decode": _decode,
    }
    step, parameters = builders[peer["workload"]](peer, compiled)

    def run() -> None:
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    if compiled:
        run()
    seconds = time.perf_counter() - start if compiled else None
    return run, parameters, peer.get("tokens", 1), seconds


def versions() -> dict[str, str]:
    """Returns the versions of the peers' packages."""
    return {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}


def hardware() -> dict[str, Any]:
    """Returns the device's name and the number of threads."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads()}


def peak_memory() -> int | None:
    """Returns the peak of the GPU's memory in bytes; None on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def make_network(peer: Peer) -> torch_library.nn.Module:
    """Returns the network of a class of diffusers, on the default device."""
    fields = dict(peer["network"])
    model: Any = getattr(diffusers, fields["_class_name"]).from_config(fields)
    if fields["_class_name"] == "DiTTransformer2DModel":  # whose blocks have equal embeddings, which ours share
        for block in model.transformer_blocks:
            block.norm1.emb = model.transformer_blocks[0].norm1.emb
    return model.to(memory_format=torch.channels_last)


def count(model: torch_library.nn.Module) -> int:
    """Returns the number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _compiled(model: Any, compiled: bool) -> Any:
    return torch.compile(model) if compiled else model


def _autocast(peer: Peer) -> torch_library.autocast:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=peer["dtype"] == "bfloat16")


def _randn(peer: Peer, *shape: int) -> torch_library.Tensor:
    return torch.randn(peer["batch_size"], *shape, device=DEVICE)


def _images(peer: Peer) -> torch_library.Tensor:
    """Returns random images, channels_last."""
    side, _, channels = peer["shape"]
    return _randn(peer, channels, side, side).to(memory_format=torch.channels_last)


def _bytes(peer: Peer) -> torch_library.Tensor:
    """Returns random grey levels, uint8, channels_last."""
    levels = torch.randint(0, 256, (peer["batch_size"], *peer["shape"]), dtype=torch.uint8, device=DEVICE)
    return levels.permute(0, 3, 1, 2)


def _labels(peer: Peer) -> torch_library.Tensor:
    return torch.arange(peer["batch_size"], device=DEVICE) % (peer["labels"] - 1)


def _denoise(peer: Peer, network: Any, x: Any, t: Any, labels: Any = None) -> Any:
    conditions = {"class_labels": labels} if labels is not None else {}
    if peer["context"]:
        conditions["encoder_hidden_states"] = _randn(peer, *peer["context"])
    return network(x, timestep=t, **conditions).sample


def _optimizer(peer: Peer, model: torch_library.nn.Module, loss: Callable[[], torch_library.Tensor]) -> Step:
    """Returns a training step: gradient, clipping, AdamW, and the average of the weights."""
    c, parameters = peer["optimizer"], list(model.parameters())
    average = [copy.deepcopy(p.detach()) for p in parameters]
    adam = torch.optim.AdamW(
        parameters, c["learning_rate"], (c["beta1"], c["beta2"]), weight_decay=c["weight_decay"], fused=True
    )

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        loss().backward()
        if c["clip_norm"]:
            torch.nn.utils.clip_grad_norm_(parameters, c["clip_norm"])
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - c["ema_decay"])

    return step


def _train_denoiser(peer: Peer, compiled: bool) -> tuple[Step, int]:
    model = make_network(peer).to(DEVICE).train()
    network, levels = _compiled(model, compiled), _bytes(peer)
    labels = _labels(peer) if peer["labels"] else None
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, peer["timesteps"], device=DEVICE), 0)

    def loss() -> torch_library.Tensor:
        x_0 = levels.float() / 127.5 - 1
        t = torch.randint(0, peer["timesteps"], (len(x_0),), device=DEVICE)
        eps = torch.randn_like(x_0)
        alpha = signal[t].sqrt()[:, None, None, None]
        x_t = alpha * x_0 + (1 - alpha**2).sqrt() * eps
        with _autocast(peer):
            output = _denoise(peer, network, x_t, t, labels)
        return functional.mse_loss(output.float(), eps)

    return _optimizer(peer, model, loss), count(model)


def _train_clip(peer: Peer, compiled: bool) -> tuple[Step, int]:
    fields, end = dict(peer["network"]), peer["vocabulary"] - 1
    fields["text_config"] = {**fields["text_config"], "bos_token_id": 0, "eos_token_id": end, "pad_token_id": 0}
    model = transformers.CLIPModel(transformers.CLIPConfig(**fields)).to(DEVICE).train()
    network, levels = _compiled(model, compiled), _bytes(peer)
    mean, std = (torch.tensor(peer[f"pixel_{name}"], device=DEVICE)[:, None, None] for name in ("mean", "std"))
    tokens = torch.randint(1, end, (peer["batch_size"], peer["length"]), device=DEVICE)
    tokens[:, -1] = end

    def loss() -> torch_library.Tensor:
        pixels = (levels.float() / 255 - mean) / std
        with _autocast(peer):
            return network(input_ids=tokens, pixel_values=pixels, return_loss=True).loss

    return _optimizer(peer, model, loss), count(model)


def _reconstruct(peer: Peer, compiled: bool) -> tuple[Step, int]:
    model, images = make_network(peer).to(DEVICE).eval(), _images(peer)
    encode, decode = _compiled(model.encode, compiled), _compiled(model.decode, compiled)

    @torch.no_grad()
    def step() -> None:
        with _autocast(peer):
            decode(encode(images).latent_dist.mode())

    return step, count(model)


def _predict(peer: Peer, compiled: bool) -> tuple[Step, int]:
    model = make_network(peer).to(DEVICE).eval()
    network, images = _compiled(model, compiled), _images(peer)

    @torch.no_grad()
    def step() -> None:
        with _autocast(peer):
            _denoise(peer, network, images, 500)

    return step, count(model)


def _sample(peer: Peer, compiled: bool) -> tuple[Step, int]:
    """DDIM with classifier-free guidance, both branches in one batch."""
    model = make_network(peer).to(DEVICE).eval()
    network, images, labels = _compiled(model, compiled), _images(peer), _labels(peer)
    both = torch.cat([labels, torch.full_like(labels, peer["labels"] - 1)])
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=peer["timesteps"], beta_schedule="linear")
    scheduler.set_timesteps(peer["steps"], device=DEVICE)

    @torch.no_grad()
    def step() -> None:
        x = images
        for t in scheduler.timesteps:
            with _autocast(peer):
                output = _denoise(peer, network, torch.cat([x, x]), t, both)
            conditional, unconditional = output.float().chunk(2)
            guided = unconditional + peer["guidance"] * (conditional - unconditional)
            x = scheduler.step(guided, t, x).prev_sample

    return step, count(model)


def _decode(peer: Peer, compiled: bool) -> tuple[Step, int]:
    """GPT-2 with cached keys and values, one vocabulary for text and image tokens, and a head of its own."""
    text, length, size = peer["text_vocabulary"], peer["text_length"], peer["batch_size"]
    config = transformers.GPT2Config(
        vocab_size=text + peer["vocabulary"],
        n_positions=length + peer["tokens"],
        n_embd=peer["width"],
        n_layer=peer["layers"],
        n_head=peer["heads"],
        activation_function="gelu",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).to(DEVICE).eval()
    network, captions = _compiled(model, compiled), torch.zeros(size, length, dtype=torch.long, device=DEVICE)

    @torch.no_grad()
    def step() -> None:
        tokens, cache = captions, None
        for _ in range(peer["tokens"]):
            with _autocast(peer):
                output = network(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, cache = output.logits[:, -1, text:].float(), output.past_key_values
            tokens = text + torch.multinomial(torch.softmax(logits, -1), 1)

    return step, count(model)
