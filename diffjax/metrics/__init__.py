"""Measures of samples. A number from here never stands without what produced it."""
