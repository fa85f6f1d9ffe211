"""Numbers between exact bounds, as terminals of a grammar.

Numbers with bounds are written without exponents, so that their digits can be compared one by one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor, gcd, lcm

from service.text.schema.json_values import Number

_INTEGER = "/0|-?[1-9][0-9]*/"
PLAIN = r"/-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?/"
# The largest double is 1.8e308. A JSON parser turns larger numbers into infinity.
_NUMBER = r"/-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?/"
_FRACTION = r"/-?[0-9]+\.[0-9]*[1-9][0-9]*/"  # any number that is not an integer

# If an interval has at most this many multiples of a number, they are listed one by one.
_MAX_LISTED = 1_000
# Multiples of n are matched by an automaton with n states, which takes 80 s to compile for 999 983.
MAX_MULTIPLE = 1_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """An interval of numbers. A bound is None if the interval has no limit on this side."""

    lower: Number | None = None
    is_lower_exclusive: bool = False
    upper: Number | None = None
    is_upper_exclusive: bool = False

    def at_least(self, limit: Number, *, is_exclusive: bool) -> "Bounds":
        """Return the part of the interval from `limit` upwards."""
        if self.lower is not None and (self.lower, self.is_lower_exclusive) >= (
            limit,
            is_exclusive,
        ):
            return self
        return replace(self, lower=limit, is_lower_exclusive=is_exclusive)

    def at_most(self, limit: Number, *, is_exclusive: bool) -> "Bounds":
        """Return the part of the interval up to `limit`."""
        if self.upper is not None and (self.upper, not self.is_upper_exclusive) <= (
            limit,
            not is_exclusive,
        ):
            return self
        return replace(self, upper=limit, is_upper_exclusive=is_exclusive)

    def contains(self, number: Number) -> bool:
        """Return True if the number is in the interval."""
        is_upper_exclusive = self.lower is not None and (number, not self.is_lower_exclusive) <= (
            self.lower,
            False,
        )
        is_lower_exclusive = self.upper is not None and (number, self.is_upper_exclusive) >= (
            self.upper,
            True,
        )
        return not is_upper_exclusive and not is_lower_exclusive

    def integers(self) -> tuple[int | None, int | None]:
        """Return the least and the greatest integer. If there is none, the least is larger."""
        least = greatest = None
        if self.lower is not None:
            least = floor(self.lower) + 1 if self.is_lower_exclusive else ceil(self.lower)
        if self.upper is not None:
            greatest = ceil(self.upper) - 1 if self.is_upper_exclusive else floor(self.upper)
        return least, greatest


def integers(least: int | None, greatest: int | None) -> str:
    """Return the terminal of the integers from `least` to `greatest`, or "" if there are none."""
    if least is None and greatest is None:
        return _INTEGER
    if least is not None and greatest is not None and least > greatest:
        return ""
    options = []
    if least is None or least < 0:
        largest = None if least is None else -least
        smallest = 1 if greatest is None or greatest >= 0 else -greatest
        options.append(f"-(?:{'|'.join(_magnitudes(smallest, largest))})")
    if greatest is None or greatest >= 0:
        options += _magnitudes(max(least or 0, 0), greatest)
    return f"/{'|'.join(options)}/"


def decimals(bounds: Bounds, *, is_fraction: bool = False) -> str:
    """Return the terminal of the numbers in an interval, or "" if there are none.

    Args:
        is_fraction: If True, integers in any notation are left out.
    """
    lower, upper = bounds.lower, bounds.upper
    if lower is None and upper is None:
        return f"{PLAIN} & {_FRACTION}" if is_fraction else _NUMBER
    options = []
    if upper is None or (upper, not bounds.is_upper_exclusive) > (0, False):
        floor_ = (lower, bounds.is_lower_exclusive) if lower is not None and lower >= 0 else None
        ceiling = None if upper is None else (upper, bounds.is_upper_exclusive)
        options.append(_distance(floor_, ceiling))
    if lower is None or lower < 0:
        floor_ = (
            (_negative(upper), bounds.is_upper_exclusive)
            if upper is not None and upper <= 0
            else None
        )
        ceiling = None if lower is None else (_negative(lower), bounds.is_lower_exclusive)
        options.append(f'"-" ({_distance(floor_, ceiling)})')
    if not options:
        return ""
    either = " | ".join(f"({option})" for option in options)
    return f"({either}) & {_FRACTION}" if is_fraction else f"({either})"


def equals(number: Number) -> str:
    """Return the terminal of all ways to write a number without an exponent."""
    whole, fraction = _parts(_negative(number) if number < 0 else number)
    sign = "-?" if number == 0 else "-" if number < 0 else ""
    rest = rf"\.{fraction}0*" if fraction else r"(?:\.0+)?"
    return f"/{sign}{whole}{rest}/"


def is_multiple(number: Number, of: Number) -> bool:
    """Return True if `number` is an integer multiple of `of`."""
    return (Fraction(number) / Fraction(of)).denominator == 1


def common_multiple(of: Iterable[Number]) -> Number:
    """Return the least number that is a multiple of all numbers."""
    result = Fraction(0)
    for each in map(Fraction, of):
        if result == 0:
            result = each
        else:
            denominator = gcd(result.denominator, each.denominator)
            result = Fraction(lcm(result.numerator, each.numerator), denominator)
    return _number(result)


def multiples(
    of: Number, bounds: Bounds, *, is_integer: bool
) -> str | dict[str, Number | str] | None:
    """Return a terminal or schema for the multiples of a number in an interval.

    Returns:
        A terminal, which is "" if there are no multiples; or a JSON schema that the grammar
        compiler enforces exactly; or None if neither is possible.

    Args:
        is_integer: If True, only integers are allowed.
    """
    unit = Fraction(of)
    if is_integer or unit.denominator == 1:
        unit = Fraction(unit.numerator)  # both p/q and 1 divide a number if and only if p does
        is_integer = True
    least = None if bounds.lower is None else ceil(Fraction(bounds.lower) / unit)
    greatest = None if bounds.upper is None else floor(Fraction(bounds.upper) / unit)
    if least is not None and greatest is not None and greatest - least < _MAX_LISTED:
        listed = (unit * factor for factor in range(least, greatest + 1))
        exact = [_number(value) for value in listed]
        return " | ".join(f'"{value}"' for value in exact if bounds.contains(value))
    power = len(str(unit)) - 1
    if is_integer and unit == 10**power:
        zeros = f" & /0|-?[1-9][0-9]*0{{{power}}}/" if power else ""
        return f"({integers(*bounds.integers())}){zeros}"
    if (1 / unit).denominator == 1 and 1 / unit <= _MAX_LISTED:
        return f"({decimals(bounds)}) & {_fractions(unit)}"
    return _compiled_multiples(unit, bounds, is_integer=is_integer)


def _compiled_multiples(
    unit: Fraction, bounds: Bounds, *, is_integer: bool
) -> dict[str, Number | str] | None:
    of = _number(unit)
    if int("".join(_parts(of)).strip("0")) > MAX_MULTIPLE:
        return None
    schema: dict[str, Number | str] = {"type": "integer" if is_integer else "number"}
    schema["multipleOf"] = of
    # The compiler's numbers are doubles. Beyond these bounds they are not exact.
    bounds = bounds.at_least(-(2**53), is_exclusive=False).at_most(2**53, is_exclusive=False)
    for keyword, limit, is_exclusive in (
        ("Minimum", bounds.lower, bounds.is_lower_exclusive),
        ("Maximum", bounds.upper, bounds.is_upper_exclusive),
    ):
        if limit is None or not -(2**53) <= limit <= 2**53:
            return None
        if Decimal(repr(float(limit))) != limit:
            return None
        schema[f"exclusive{keyword}" if is_exclusive else keyword.lower()] = limit
    return schema


def _number(value: Fraction) -> Number:
    """Return the fraction as an exact decimal. Its denominator must divide a power of ten."""
    if value.denominator == 1:
        return value.numerator
    power = 0
    while value.denominator != 1:
        value *= 10
        power += 1
    return Decimal(f"{value.numerator}e-{power}")


def _fractions(unit: Fraction) -> str:
    """Return the terminal of decimals whose fractional part is a multiple of `unit` (1/n)."""
    parts = [_parts(_number(unit * factor))[1] for factor in range(1, int(1 / unit))]
    return rf"/-?[0-9]+(?:\.(?:{'|'.join(['0', *parts])})0*)?/"


def _negative(number: Number) -> Number:
    # Arithmetic on decimals would round them.
    return -number if isinstance(number, int) else number.copy_negate()


def _distance(least: tuple[Number, bool] | None, most: tuple[Number, bool] | None) -> str:
    """Return a terminal of unsigned decimals. A bound is a number, and True if it is excluded."""
    parts = [] if least is None and most is not None else [_from(least[0] if least else 0)]
    parts += [] if most is None else [_to(most[0])]
    parts += (f"~{equals(bound[0])}" for bound in (least, most) if bound is not None and bound[1])
    return " & ".join(parts)


def _from(limit: Number) -> str:
    """Return the terminal of unsigned decimals that are at least `limit`."""
    whole, fraction = _parts(limit)
    if not fraction:
        return rf"/(?:{'|'.join(_magnitudes(int(whole), None))})(?:\.[0-9]+)?/"
    above = "|".join(_magnitudes(int(whole) + 1, None))
    higher = [rf"{same}[{int(digit) + 1}-9][0-9]*" for same, digit in _digits(fraction, "9")]
    more = "|".join([*higher, f"{fraction}[0-9]*"])
    return rf"/(?:{above})(?:\.[0-9]+)?|{whole}\.(?:{more})/"


def _to(limit: Number) -> str:
    """Return the terminal of unsigned decimals that are at most `limit`."""
    whole, fraction = _parts(limit)
    options = []
    if int(whole) > 0:
        options.append(rf"(?:{'|'.join(_magnitudes(0, int(whole) - 1))})(?:\.[0-9]+)?")
    if fraction:
        lower = [rf"{same}[0-{int(digit) - 1}][0-9]*" for same, digit in _digits(fraction, "0")]
        lower += [fraction[:length] for length in range(1, len(fraction))]
        options.append(rf"{whole}(?:\.(?:{'|'.join([*lower, f'{fraction}0*'])}))?")
    else:
        options.append(rf"{whole}(?:\.0+)?")
    return f"/{'|'.join(options)}/"


def _parts(number: Number) -> tuple[str, str]:
    """Return the digits before and after the decimal point, without trailing zeros."""
    text = str(number) if isinstance(number, int) else f"{number:f}"
    whole, _, fraction = text.partition(".")
    return whole, fraction.rstrip("0")


def _magnitudes(least: int, greatest: int | None) -> list[str]:
    """Return regexes of the unsigned integers from `least` to `greatest`."""
    options = []
    if least == 0:
        options.append("0")
        least = 1
    if greatest is None:
        digits = str(least)
        return [*options, *_at_least(digits), f"[1-9][0-9]{{{len(digits)},}}"]
    if least > greatest:
        return options
    low, high = str(least), str(greatest)
    if len(low) == len(high):
        return [*options, *_between(low, high)]
    options += _at_least(low)
    if len(high) - len(low) > 1:
        options.append(f"[1-9][0-9]{{{len(low)},{len(high) - 2}}}")
    return [*options, *_between("1" + "0" * (len(high) - 1), high)]


def _between(low: str, high: str) -> Iterator[str]:
    """Yield regexes of the numerals from `low` to `high`, which have the same number of digits."""
    same = 0
    while same < len(low) and low[same] == high[same]:
        same += 1
    shared, low, high = low[:same], low[same:], high[same:]
    if not low:
        yield shared
        return
    rest = len(low) - 1
    if not low.strip("0") and not high.strip("9"):
        yield f"{shared}{_any_digits(rest + 1)}"
        return
    first, last = int(low[0]), int(high[0])
    for option in _at_least(low[1:]):
        yield f"{shared}{first}{option}"
    if last - first > 1:
        yield f"{shared}[{first + 1}-{last - 1}]{_any_digits(rest)}"
    for option in _at_most(high[1:]):
        yield f"{shared}{last}{option}"


def _at_least(low: str) -> Iterator[str]:
    """Yield regexes of the numerals with as many digits as `low` that are not less."""
    for same, digit in _digits(low, "9"):
        rest = len(low) - len(same) - 1
        if low[len(same) :].strip("0"):
            yield f"{same}[{int(digit) + 1}-9]{_any_digits(rest)}"
    kept = low.rstrip("0")
    yield kept + _any_digits(len(low) - len(kept))


def _at_most(high: str) -> Iterator[str]:
    """Yield regexes of the numerals with as many digits as `high` that are not greater."""
    for same, digit in _digits(high, "0"):
        rest = len(high) - len(same) - 1
        if high[len(same) :].strip("9"):
            yield f"{same}[0-{int(digit) - 1}]{_any_digits(rest)}"
    kept = high.rstrip("9")
    yield kept + _any_digits(len(high) - len(kept))


def _digits(text: str, but: str) -> Iterable[tuple[str, str]]:
    """Return each digit that is not `but`, with the digits before it."""
    return ((text[:i], digit) for i, digit in enumerate(text) if digit != but)


def _any_digits(count: int) -> str:
    return f"[0-9]{{{count}}}" if count else ""
