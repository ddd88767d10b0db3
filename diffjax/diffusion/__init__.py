"""The mathematics of diffusion: pure functions on independent axes, written for one example. Imports nothing of ours."""
