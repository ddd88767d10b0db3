"""Numbers as text, with the digits that their errors leave."""

import math

_DIGITS = 3  # significant digits of a number without an error


def number(value: float | None) -> str:
    """Returns `value` with three significant digits, and all digits of its integer part.

    None gives "–"; non-finite values give "nan", "inf" and "-inf".
    """
    if value is None:
        return "–"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return _fixed(value, max(0, _DIGITS - 1 - math.floor(math.log10(abs(value)))))


def with_error(value: float | None, error: float | None) -> str:
    """Returns "value ± error", both rounded to the same decimal place.

    The error keeps one significant digit, or two where the first is a 1 (122 ± 8, 0.2450 ± 0.0012). Without an error
    that is finite and positive it is `number(value)`.
    """
    if value is None or error is None or not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return number(value)
    return f"{_fixed(value, _places(error))} ± {_fixed(error, _places(error))}"


def _places(error: float) -> int:
    """Returns the decimal places that an error leaves, negative for tens, hundreds, ..."""
    exponent = math.floor(math.log10(error))
    rounded = round(error / 10**exponent, 1)  # 0.196 is 0.20 in two digits, whose first is a 2
    if rounded >= 10:
        exponent, rounded = exponent + 1, 1.0
    return -exponent + (rounded < 2)


def _fixed(value: float, places: int) -> str:
    """Returns `value` rounded to `places` decimals, in scientific notation below 1e-4 and from 1e6 on."""
    rounded = round(value, places)
    if rounded and not 1e-4 <= abs(rounded) < 1e6:
        digits = max(0, places + math.floor(math.log10(abs(rounded))))
        return f"{rounded:.{digits}e}"
    return f"{rounded + 0.0:.{max(0, places)}f}"  # + 0.0: no negative zero
