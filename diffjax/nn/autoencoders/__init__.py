"""Encoders and decoders of autoencoders: latent diffusion's (`ldm`), VQ-VAE's (`vqvae`), DALL-E's (`dalle`), TAESD.

Each file has `Encoder(outputs, ...)`, from [B, H, W, C] to [B, H / factor, W / factor, outputs], and
`Decoder(outputs, ...)`, from [B, h, w, D] to [B, h * factor, w * factor, outputs]. They exclude the latent distribution
or codebook, and the 1x1 convolutions to its size. `outputs`, `channels` (the base width), `factor`, `initializer` and
`dtype` are common to all. The output is float32 for every `dtype`.
"""

from jax import Array
from jaxtyping import Float


def check_sides(x: Float[Array, "B H W C"], factor: int) -> None:
    """Raises ValueError unless both sides are multiples of `factor`."""
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"factor={factor}: requires image sides that are its multiples, not {x.shape[1:3]}")
