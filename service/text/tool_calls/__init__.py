"""Tool calls: how models write them, in prompts, in grammars and in parsers."""
