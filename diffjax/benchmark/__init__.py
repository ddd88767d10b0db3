"""Speed of training and sampling, compared with PyTorch, and the memory of a training step."""
