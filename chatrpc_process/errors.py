"""The error for options and for files of the operator, such as keys and certificates."""


class ConfigError(Exception):
    """An option or a file is invalid. The text names it and the reason, in one line."""
