"""The errors of a schema, each with the path of the keyword."""


class SchemaError(Exception):
    """The schema or one of its keywords is malformed, or no value can match the schema.

    `path` locates the keyword, such as `.properties.x.minimum`. It is empty for the whole schema.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


class UnsupportedKeyword(SchemaError):
    """A grammar cannot enforce a keyword of a strict schema."""
