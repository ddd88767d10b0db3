"""Speed of training and sampling, also beside PyTorch, and the memory of a training step."""
