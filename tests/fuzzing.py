"""Hypothesis as a generator of fixed cases, without a database and shrinking."""

import hypothesis


def cases(count: int) -> hypothesis.settings:
    """Returns settings for a test of `count` cases that takes minutes."""
    return hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
