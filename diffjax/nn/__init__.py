"""Flax modules: denoising networks, encoders and decoders, transformers and their blocks."""
