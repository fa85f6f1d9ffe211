"""Random words and texts made of them.

Every word of words.txt is a common English word and, with the space before it, one token of the
measured model. So a number of words is a number of tokens.
"""

import random
from pathlib import Path

_WORDS = Path(__file__).with_suffix(".txt").read_text().split()


def words(num_words: int, rng: random.Random) -> str:
    """Return `count` random words."""
    return " ".join(rng.choices(_WORDS, k=num_words))


def sentences(num_words: int, rng: random.Random) -> str:
    """Return about `count` words as sentences of five to nine words, each with a capital."""
    text: list[str] = []
    while num_words > 0:
        length = min(rng.randint(5, 9), num_words)
        text.append(words(length, rng).capitalize() + ".")
        num_words -= length
    return " ".join(text)
