"""Class ids and names: parses a user's text for them, and writes them in pictures and messages."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from var_jax.errors import UserError, did_you_mean

# Largest class id, and most images of a grid: a larger number is a slip that would fill the memory.
MAX_LABELS = 1_000_000
NO_CLASS = "no class"
CLASSES_SHOWN = 10
HELP = (
    "class names or ids with commas between them, and ranges of ids: circle,3,5-9. A number is "
    "always an id; a name that is a number, or that holds a comma or a quote, goes in double "
    "quotes, with quotes in it doubled"
)
ENTRY = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,"]*))\s*(,|$)')
WEIGHTED = re.compile(r"=\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:,|$)")
NUMBERS = re.compile(r"([0-9]+)(?:-([0-9]+))?")


class Entry(NamedTuple):
    """The text between two commas, and whether it was in quotes."""

    text: str
    quoted: bool


def parse(text: str, class_names: Sequence[str] = (), option: str = "--labels") -> list[int]:
    """Returns the class ids that a user's text names; `HELP` describes its format.

    Args:
      class_names: the model's class names, by id; empty where it has none.
      option: the command-line option that an error names.
    Raises:
      UserError: an entry is neither a class name of the model nor an id or a range of ids. Whether
        the model has classes of these ids is not checked here.
    """
    labels: list[int] = []
    try:
        for entry in _entries(text, option):
            labels.extend(_labels(entry, text, class_names, option))
    except UserError:
        # One name that holds a comma is accepted without quotes.
        if text.strip() in class_names:
            return [list(class_names).index(text.strip())]
        raise
    return labels


def parse_weighted(
    text: str, class_names: Sequence[str] = (), option: str = "--negative-labels"
) -> dict[int, float]:
    """Returns the weights of the classes that a user's text names: "3", "3,5" or "3=2,5=1".

    Without weights all count the same.

    Raises:
      UserError: as in `parse`, some entries have a weight and others do not, or a class has two.
    """
    named = WEIGHTED.split(text)
    if len(named) == 1:
        return dict.fromkeys(parse(text, class_names, option), 1.0)
    *pairs, rest = named
    if rest.strip():
        raise UserError(f"{option}: {rest.strip()!r} has no weight; write all as CLASS=WEIGHT")
    labels = [parse_one(name, class_names, option) for name in pairs[::2]]
    if len(set(labels)) < len(labels):
        raise UserError(f"{option} {text!r} has a class twice; give each class one weight")
    return dict(zip(labels, map(float, pairs[1::2]), strict=True))


def parse_one(text: str, class_names: Sequence[str] = (), option: str = "--label") -> int:
    """Returns the one class id of a user's text.

    Raises:
      UserError: as in `parse`, or the text names several classes.
    """
    labels = parse(text, class_names, option)
    if len(labels) != 1:
        raise UserError(f"{option} {text!r} is {len(labels)} classes; it must be one")
    return labels[0]


def of_name(name: str, class_names: Sequence[str], what: str = "label") -> int:
    """Returns the id of a class name.

    Letter case and the Unicode form of accents matter only where two names differ in nothing else.

    Args:
      what: word for the name in an error.
    Raises:
      UserError: no class has this name, or the model has no class names.
    """
    names = list(class_names)
    if name in names:
        return names.index(name)
    same_folded = [i for i, other in enumerate(names) if _folded(other) == _folded(name)]
    if len(same_folded) == 1:
        return same_folded[0]
    if not names:
        raise UserError(
            f"{what} {name!r} is not a class id, and the model carries no class names; "
            "write 0,1,2 or 0-9"
        )
    # A close name is suggested, whatever its letter case; else the first names are listed.
    hint = did_you_mean(name, names)
    if "did you mean" not in hint:
        hint = did_you_mean(_folded(name), {_folded(other): other for other in names})
    if "did you mean" not in hint:
        more = f", ... ({len(names)} in all)" if len(names) > CLASSES_SHOWN else ""
        hint = f"; classes: {', '.join(map(written, names[:CLASSES_SHOWN]))}{more}"
    raise UserError(f"{what} {name!r} is no class of the model{hint}")


def written(name: str) -> str:
    """Returns a class name as `parse` reads it: quoted where it would be ids or two names.

    Lists of names on the terminal use it, where "ring, thin" would pass for two classes.
    """
    if not (NUMBERS.fullmatch(name) or set(name) & set(',"') or name != name.strip()):
        return name
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def title(label: int, class_names: Sequence[str], num_classes: int) -> str:
    """Returns a class's title in a picture: its name, else its id."""
    if label == num_classes:
        return NO_CLASS
    return class_names[label] if label < len(class_names) else str(label)


def describe(labels: Sequence[int], class_names: Sequence[str], num_classes: int) -> str:
    """Returns the names of labels, as in "0 circle, 1 square", each class once.

    It is "" if the model has no names, or if its names are the ids.
    """
    shown = [(label, title(label, class_names, num_classes)) for label in dict.fromkeys(labels)]
    if all(name == str(label) for label, name in shown):
        return ""
    more = f", ... ({len(shown)} classes)" if len(shown) > CLASSES_SHOWN else ""
    names = (f"{label} {written(name)}" for label, name in shown[:CLASSES_SHOWN])
    return ", ".join(names) + more


def warnings(
    text: str,
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    num_classes: int,
    option: str = "--labels",
) -> list[str]:
    """Returns a line for each entry that the user may have meant otherwise.

    Such an entry is an id that is also the name of another class, or an id beyond the classes of
    the training data.

    Args:
      text: the user's text.
      labels: the ids that `parse` returned for it.
    """
    lines = []
    names = list(class_names)
    for entry in dict.fromkeys(_entries(text, option)):
        if entry.quoted or not entry.text.isdecimal() or entry.text not in names:
            continue
        label = int(entry.text)
        label_of_name = names.index(entry.text)
        if label_of_name != label and label < len(names):
            lines.append(
                f"{option} {entry.text} is the class of id {entry.text}, {names[label]!r}; the "
                f"class named {entry.text!r} has id {label_of_name}"
            )
    beyond = [label for label in labels if len(names) <= label < num_classes]
    if names and beyond:
        lines.append(
            f"label {beyond[0]} is none of the {len(names)} classes that the model was trained on "
            f"(0 to {len(names) - 1})"
        )
    return lines


def _entries(text: str, option: str) -> list[Entry]:
    """Returns the entries of a comma-separated text.

    Raises:
      UserError: a quote is not closed, or an entry has text outside its quotes.
    """
    entries = []
    start = 0
    while True:
        match = ENTRY.match(text, start)
        if match is None:
            raise UserError(
                f"{option} {text!r} has a double quote without its other one, or text beside quotes"
            )
        quoted = match[1] is not None
        entries.append(Entry(match[1].replace('""', '"') if quoted else match[2].strip(), quoted))
        if not match[3]:
            return entries
        start = match.end()


def _labels(entry: Entry, text: str, class_names: Sequence[str], option: str) -> Sequence[int]:
    """Returns the class ids of one entry: those of a name, an id or a range of ids."""
    if not entry.text:
        raise UserError(f"{option} {text!r}: {entry.text!r} is not a class id; write 0,1,2 or 0-9")
    numbers = None if entry.quoted else NUMBERS.fullmatch(entry.text)
    if numbers is None:
        return [of_name(entry.text, class_names, f"{option}:")]
    first = numbers[1]
    last = numbers[2] or first
    if any(len(end) > len(str(MAX_LABELS)) or int(end) > MAX_LABELS for end in (first, last)):
        raise UserError(
            f"{option}: {entry.text[:40]!r} goes beyond every model's classes; write 0,1,2 or 0-9"
        )
    if int(last) < int(first):
        raise UserError(f"{option} {text!r}: {entry.text!r} has no classes; write {last}-{first}")
    return range(int(first), int(last) + 1)


def _folded(name: str) -> str:
    """Returns a name with accents in one Unicode form and without letter case."""
    return unicodedata.normalize("NFC", name).casefold()
