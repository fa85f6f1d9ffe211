"""Everything between text and tokens: templates, tokenizers, stop strings, grammars."""
