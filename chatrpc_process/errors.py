"""The error of everything that an operator has written: options, key files, certificates."""


class ConfigError(Exception):
    """A setting or a file is invalid. The text says which and why, in one line."""
