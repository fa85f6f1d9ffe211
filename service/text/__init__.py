"""Everything between text and tokens: templates, tokenizers, detokenization, stop strings,
grammars.
"""
