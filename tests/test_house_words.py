"""The words of comments, docstrings, help and errors: those of the field."""

import re
from pathlib import Path

import pytest

from helpers.sources import File, sources

# A number or a unit, and what it is counted by: "8 images per step", not "8 images a step". Nouns
# that are verbs too ("samples", "runs") are no units here: what follows may be their object.
UNITS = """
bytes FLOPs GB GiB KiB MB MiB batches codes cores dollars evaluations files images metrics
microseconds milliseconds ms numbers pixels rows s seconds tokens twice values vectors weights
"""
COUNTED_BY = """
scale device step second minute hour day host chip process core slice image token layer block class
batch run
"""
ARTICLE_FOR_PER = re.compile(
    rf"(?:\b\d+(?:\.\d+)?|\b(?:{'|'.join(UNITS.split())})) "
    rf"an? (?:{'|'.join(COUNTED_BY.split())})\b(?!-)",
    re.IGNORECASE,
)


def article_for_per(file: File) -> list[str]:
    """Rates and shares are "per step", not "a step", in what people read."""
    return [
        f"{file.path}:{line} {match[0]}"
        for line, text in file.texts()
        for match in ARTICLE_FOR_PER.finditer(text)
    ]


@pytest.mark.parametrize("top", ["var_jax", "launch", "configs"])
def test_sources_say_per(top):
    """No comment or string counts anything by an article."""
    assert sources(top) and [p for file in sources(top) for p in article_for_per(file)] == []


@pytest.mark.parametrize(
    "text",
    [
        "# Of 16 chips, 4 a host.",
        '"""Returns images\n    a second."""',
        "f'{rate:.1f} a step'",
        "x = 'at most 3 tokens ' 'an image'",
    ],
)
def test_article_for_per_is_named(text):
    """The rule sees comments, docstrings over lines, inserted numbers and joined strings."""
    (place,) = article_for_per(File(Path("x.py"), text))
    assert place.startswith("x.py:1")


@pytest.mark.parametrize(
    "text",
    [
        "# It samples a token, runs a step, and gives 3 images per second.",
        "# It is 0. A step follows, with the codes a class-conditional model learns.",
        "images = a + step",
    ],
)
def test_article_of_a_noun_is_allowed(text):
    """An article that means one of a kind is no fault."""
    assert article_for_per(File(Path("x.py"), text)) == []
