"""Latents of autoencoders, quantisers and sampling of tokens, as pure functions of arrays."""
