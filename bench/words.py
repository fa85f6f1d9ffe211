"""Random words and texts made of them.

Each word of words.txt is a common English word. With the space before it, it is one token of the
measured model, so the number of words is the number of tokens.
"""

import random
from pathlib import Path

_WORDS = Path(__file__).with_suffix(".txt").read_text().split()


def words(num_words: int, rng: random.Random) -> str:
    """Return a text of `num_words` random words."""
    return " ".join(rng.choices(_WORDS, k=num_words))


def sentences(num_words: int, rng: random.Random) -> str:
    """Return about `num_words` words, in sentences of five to nine words with a capital letter."""
    text: list[str] = []
    while num_words > 0:
        length = min(rng.randint(5, 9), num_words)
        text.append(words(length, rng).capitalize() + ".")
        num_words -= length
    return " ".join(text)
