"""Files of the operator, which are read again when they change."""
