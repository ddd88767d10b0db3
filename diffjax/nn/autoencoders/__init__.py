"""Encoders and decoders of autoencoders: latent diffusion's (`ldm`), VQ-VAE's (`vqvae`), DALL-E's (`dalle`).

Each file has `Encoder(outputs, ...)`, from [B, H, W, C] to [B, H / factor, W / factor, outputs], and
`Decoder(outputs, ...)`, from [B, h, w, D] to [B, h * factor, w * factor, outputs]. What lies between, a Gaussian or a
codebook, and the 1x1 convolutions to its size, are no part of them. `outputs`, `channels` (the base width), `factor`,
`initializer` and `dtype` are common to all; the output is float32 whatever the `dtype`.
"""

from jax import Array
from jaxtyping import Float


def check_sides(x: Float[Array, "B H W C"], factor: int) -> None:
    """Raise ValueError unless both sides are multiples of `factor`."""
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"an encoder of factor {factor} needs sides that are its multiples, not {x.shape[1:3]}")
