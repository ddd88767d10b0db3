"""Published weights: files of tensors, and the tables that map their names to ours."""
