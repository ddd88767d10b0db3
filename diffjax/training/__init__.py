"""Training of any model: the step, its compilation and sharding, the loop, logging and previews."""
