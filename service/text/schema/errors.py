"""The ways in which a schema can fail, by the path of the keyword."""


class SchemaError(Exception):
    """A schema, or a keyword of it, is malformed or no value can fulfil it.

    `path` is where the keyword stands, as `.properties.x.minimum`; empty for the whole schema.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


class UnsupportedKeyword(SchemaError):
    """A keyword that a grammar cannot enforce, in a schema that must be followed exactly."""
