"""Random words, and texts made of them.

Every word of words.txt is one token, with the space before it, in the vocabulary of the model
measured, and a common one in English, so that a number of words is a number of tokens.
"""

import random
from pathlib import Path

_WORDS = Path(__file__).with_suffix(".txt").read_text().split()


def words(num_words: int, rng: random.Random) -> str:
    """So many words, drawn one by one."""
    return " ".join(rng.choices(_WORDS, k=num_words))


def sentences(num_words: int, rng: random.Random) -> str:
    """About so many words, as sentences of five to nine that start with a capital."""
    text: list[str] = []
    while num_words > 0:
        length = min(rng.randint(5, 9), num_words)
        text.append(words(length, rng).capitalize() + ".")
        num_words -= length
    return " ".join(text)
