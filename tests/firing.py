"""Hypothesis as a source of cases alone: the same ones every time, none of them kept or made smaller."""

import hypothesis


def cases(count: int) -> hypothesis.settings:
    """Settings of a test that takes minutes."""
    return hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
