"""The names of the fields of structs."""

from msgspec import Struct


def own_fields(kind: type[Struct], shared: type[Struct]) -> tuple[str, ...]:
    """Return the names of the fields of `kind` that `shared`, from which it inherits, lacks."""
    return tuple(name for name in kind.__struct_fields__ if name not in shared.__struct_fields__)
