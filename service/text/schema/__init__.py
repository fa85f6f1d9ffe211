"""JSON Schema as rules of a grammar.

A schema goes through four steps: `documents` reads it exactly, `claims` takes it apart into
alternatives of simple assertions, `shapes` puts these together to the values that fulfil all of
them, and `rules` writes the values as a grammar.
"""
