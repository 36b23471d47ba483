"""Files of a directory, for comparisons of what a command has written."""

from pathlib import Path


def contents(directory: Path, pattern: str = "*") -> dict[str, bytes]:
    """Returns the bytes of each file below a directory, by its path from there."""
    paths = [path for path in directory.rglob(pattern) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}
