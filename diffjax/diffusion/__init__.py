"""Mathematics of diffusion: pure functions on independent axes. Imports nothing else of diffjax."""
