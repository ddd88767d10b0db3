"""The web demo: an engine that samples runs for several clients."""
