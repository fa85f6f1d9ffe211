"""Checks values of requests against the table of limits.

Every function raises InvalidField if the value is out of its limits. `field` is the path of the
field in the request, and `name` is the key of its limits in `chatrpc.v1.limits.LIMITS`.
"""

from chatrpc.v1.limits import LIMITS
from service.errors import InvalidField

# The numbers of all results of a response, as floats of 32 bits, must fit into one message of
# 32 MiB.
MAX_NUMBERS = 8_000_000


def check_size(text: str, name: str, field: str) -> None:
    """Check that a text has at most the characters that `name` may have."""
    max_size = LIMITS[name].max_size
    if len(text) > max_size:
        raise InvalidField(field, f"has at most {max_size} characters.")


def check_range(number: int, name: str, field: str) -> None:
    """Check that a number is within the limits of `name`."""
    limits = LIMITS[name]
    if not limits.allow(number):
        raise InvalidField(field, f"must be {limits.range}.")


def check_num_results(
    num_inputs: int,
    num_dimensions: int,
    field: str,
    results: str = "embeddings",
    numbers: str = "dimensions",
) -> None:
    """Check that the results of a request fit into one message.

    Args:
        num_dimensions: Number of numbers of each result.
        results: The word for the results in the error.
        numbers: The word for the numbers of a result in the error.
    """
    if num_inputs * num_dimensions > MAX_NUMBERS:
        raise InvalidField(
            field,
            f"At most {MAX_NUMBERS} numbers are returned at once, and {num_inputs} {results} of "
            f"{num_dimensions} {numbers} have more. Send fewer inputs.",
        )
