"""Sampling of models: settings, prompts, batches over devices, reranking and image files."""
