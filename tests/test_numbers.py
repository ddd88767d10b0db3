import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffjax import numbers


@pytest.mark.parametrize(
    "value, error, text",
    [
        (122.3, 7.645, "122 ± 8"),
        (122.3, 1.42, "122.3 ± 1.4"),
        (0.2401, 0.0302, "0.24 ± 0.03"),
        (0.245, 0.00123, "0.2450 ± 0.0012"),
        (0.5, 0.0196, "0.50 ± 0.02"),
        (1321.1, 43.2, "1320 ± 40"),
        (1321.1, 996.0, "1300 ± 1000"),
        (-0.004, 0.03, "0.00 ± 0.03"),
        (7.15e-5, 4.9e-6, "7.2e-05 ± 5e-06"),
        (3.0, 0.0, "3.00"),
        (3.0, None, "3.00"),
        (3.0, math.nan, "3.00"),
        (None, 1.0, "–"),
        (math.nan, 1.0, "nan"),
        (math.inf, 1.0, "inf"),
    ],
)
def test_digits_follow_the_error(value, error, text):
    assert numbers.with_error(value, error) == text


@pytest.mark.parametrize(
    "value, text",
    [(912.84, "913"), (0.6713, "0.671"), (40_312.7, "40313"), (0, "0"), (-1.2345, "-1.23"), (1.234e-7, "1.23e-07")],
)
def test_three_digits_without_an_error(value, text):
    assert numbers.number(value) == text


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e9))
def test_rounding_moves_a_value_by_less_than_its_error(value, error):
    written, _, rounded = numbers.with_error(value, error).partition(" ± ")
    assert abs(float(written) - value) <= 0.51 * error + 1e-12 * abs(value)
    assert float(rounded) == pytest.approx(error, rel=0.5)
