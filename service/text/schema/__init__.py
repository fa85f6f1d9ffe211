"""JSON Schema as rules of a grammar.

`rules.json_rules` translates a schema in five steps:

1. `documents` parses the schema exactly (`json_values`) and resolves its references.
2. `clauses` splits each subschema into clauses, whose alternatives are simple assertions
   (`assertions`) and further subschemas. `keywords` checks the keywords, `keyword_assertions` and
   `keyword_negations` translate them.
3. `schema_graph` collects the subschemas of each value in a node, and merges the assertions of each
   combination of alternatives (`conjunctions`).
4. Each conjunction becomes shapes: sets of scalars, arrays or objects (`shapes`, `scalar_shapes`,
   `array_shapes`, `object_shapes`), whose parts are nodes again. `pruning` removes empty shapes.
5. `rules` writes a grammar rule for each node (`contains_automaton` for arrays with `contains`).

Terminals come from `numbers` (exact bounds), `patterns` and `pattern_syntax` (regular expressions)
and `string_formats`. `terminal_checks` finds out what a terminal matches. `enforcement` decides
what happens to keywords that a grammar cannot enforce.
"""
