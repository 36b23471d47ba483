"""Class ids and class names: what users write for classes, and what pictures and messages call
them."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from var_jax.errors import UserError, did_you_mean

# Labels, and images of one grid: what lies beyond is a slip that would fill the memory
MOST = 1_000_000
NO_CLASS = "no class"
NAMES_SHOWN = 10
HELP = (
    "class names or ids with commas between them, and ranges of ids: circle,3,5-9. A number is always an id; a "
    "name that is a number, or that holds a comma or a quote, goes in double quotes, with quotes in it doubled"
)
ENTRY = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,"]*))\s*(,|$)')
NUMBERS = re.compile(r"([0-9]+)(?:-([0-9]+))?")


class Entry(NamedTuple):
    """What stands between two commas, and whether it stood in quotes."""

    text: str
    quoted: bool


def parse(text: str, class_names: Sequence[str] = (), option: str = "--labels") -> list[int]:
    """The class ids that a user writes; see `HELP`.

    Args:
      class_names: of the model, by id; empty where it carries none.
      option: for the message.
    Raises:
      UserError: an entry is neither a class of the model nor a range of ids, which need not be
        those of classes.
    """
    try:
        return [
            label
            for entry in _entries(text, option)
            for label in _labels(entry, text, class_names, option)
        ]
    except UserError:
        if text.strip() in class_names:  # a name with a comma in it, alone
            return [list(class_names).index(text.strip())]
        raise


def parse_one(text: str, class_names: Sequence[str] = (), option: str = "--label") -> int:
    """The one class id that a user writes.

    Raises:
      UserError: as `parse`, or several are given.
    """
    labels = parse(text, class_names, option)
    if len(labels) != 1:
        raise UserError(f"{option} {text!r} is {len(labels)} classes; it must be one")
    return labels[0]


def of_name(name: str, class_names: Sequence[str], what: str = "label") -> int:
    """The id of the class of this name.

    Capital letters and ways of composing accents count only where two names differ in nothing else.

    Raises:
      UserError: there is none, or the model carries no class names.
    """
    names = list(class_names)
    if name in names:
        return names.index(name)
    alike = [i for i, other in enumerate(names) if _folded(other) == _folded(name)]
    if len(alike) == 1:
        return alike[0]
    if not names:
        raise UserError(
            f"{what} {name!r} is not a class id, and the model carries no class names; write 0,1,2 or 0-9"
        )
    close = did_you_mean(name, names)
    if "did you mean" not in close:  # in another case, or many
        folded = {_folded(other): other for other in names}
        close = did_you_mean(_folded(name), folded)
        if "did you mean" not in close:
            more = f", ... ({len(names)} in all)" if len(names) > NAMES_SHOWN else ""
            close = f"; classes: {', '.join(map(written, names[:NAMES_SHOWN]))}{more}"
    raise UserError(f"{what} {name!r} is no class of the model{close}")


def written(name: str) -> str:
    """Returns a class name as `parse` reads it: in double quotes where it would be ids or two names.

    For lists of names on the terminal, in which "ring, thin" would pass for two classes.
    """
    if not (NUMBERS.fullmatch(name) or set(name) & set(',"') or name != name.strip()):
        return name
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def title(label: int, class_names: Sequence[str], num_classes: int) -> str:
    """What a class is called in a picture: its name, else its id."""
    if label == num_classes:
        return NO_CLASS
    return class_names[label] if label < len(class_names) else str(label)


def described(labels: Sequence[int], class_names: Sequence[str], num_classes: int) -> str:
    """ "0 circle, 1 square": which id is which name, each class once; "" where names say no more
    than ids."""
    shown = [(label, title(label, class_names, num_classes)) for label in dict.fromkeys(labels)]
    if all(name == str(label) for label, name in shown):
        return ""
    more = f", ... ({len(shown)} classes)" if len(shown) > NAMES_SHOWN else ""
    names = (f"{label} {written(name)}" for label, name in shown[:NAMES_SHOWN])
    return ", ".join(names) + more


def remarks(
    text: str,
    labels: Sequence[int],
    class_names: Sequence[str],
    num_classes: int,
    option: str = "--labels",
) -> list[str]:
    """What a user may have meant otherwise, a line each: ids that are also names of other classes,
    and ids beyond the classes that the model was trained on."""
    found = []
    ids = [
        entry.text
        for entry in _entries(text, option)
        if not entry.quoted and entry.text.isdecimal()
    ]
    names = list(class_names)
    for number in dict.fromkeys(ids):
        if number in names and (place := names.index(number)) != int(number) < len(names):
            found.append(
                f"{option} {number} is the class of id {number}, {names[int(number)]!r}; the class named "
                f"{number!r} has id {place}"
            )
    if names and (beyond := [label for label in labels if len(names) <= label < num_classes]):
        found.append(
            f"label {beyond[0]} is none of the {len(names)} classes that the model was trained on "
            f"(0 to {len(names) - 1})"
        )
    return found


def _entries(text: str, option: str) -> list[Entry]:
    entries, start = [], 0
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
    if not entry.text:
        raise UserError(f"{option} {text!r}: {entry.text!r} is not a class id; write 0,1,2 or 0-9")
    numbers = None if entry.quoted else NUMBERS.fullmatch(entry.text)
    if numbers is None:
        return [of_name(entry.text, class_names, f"{option}:")]
    first, last = numbers[1], numbers[2] or numbers[1]
    if any(len(end) > len(str(MOST)) or int(end) > MOST for end in (first, last)):
        raise UserError(
            f"{option}: {entry.text[:40]!r} goes beyond every model's classes; write 0,1,2 or 0-9"
        )
    if int(last) < int(first):
        raise UserError(f"{option} {text!r}: {entry.text!r} has no classes; write {last}-{first}")
    return range(int(first), int(last) + 1)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
