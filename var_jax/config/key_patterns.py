"""Patterns that choose parameters by their paths, such as "decoder" or "blocks/*/bias"."""

from collections.abc import Iterator
from fnmatch import fnmatchcase


def split(patterns: str) -> list[str]:
    """Returns the patterns that a config key lists between commas."""
    return [pattern for part in patterns.split(",") if (pattern := part.strip())]


def matches(patterns: str, path: str) -> bool:
    """Returns whether a parameter is among those that patterns choose; "" chooses all.

    A pattern chooses what it matches with all that is in it: "decoder" matches "decoder/conv_in",
    and "*" stands for any characters.

    Args:
      patterns: as in `config.trainable`.
      path: the parameter's names from the outermost on, with "/" between them.
    """
    chosen = split(patterns)
    return not chosen or any(
        fnmatchcase(part, pattern) for part in leading_parts(path) for pattern in chosen
    )


def counted_flops(patterns: str) -> str:
    """Returns what the FLOPs of a run count that trains some parameters alone; "" if it trains all.

    Reports of FLOPs, and of times and MFU that follow from them, show it.
    """
    if not split(patterns):
        return ""
    return (
        "FLOPs count the training of all parameters, and so do times and MFU; with trainable "
        f"{patterns!r} steps compute fewer"
    )


def leading_parts(path: str) -> Iterator[str]:
    """Yields "a", "a/b" and "a/b/c" of "a/b/c"."""
    names = path.split("/")
    for end in range(1, len(names) + 1):
        yield "/".join(names[:end])
