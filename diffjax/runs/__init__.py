"""A run on disk: its folder, config, data, dependencies, checkpoints, and how it is opened."""
