"""Latents: what stands between a picture and its codes, and how codes are drawn, as pure functions of arrays."""
