"""What users write for classes: names, ids and ranges, and what is said where it is none of
them."""

import numpy as np
import pytest

from helpers import small
from var_jax.errors import UserError
from var_jax.io import model_directory
from var_jax.sampling import labels, validate

NAMES = (
    "circle",
    "square",
    "T-shirt/top",
    "tench, Tinca",
    "7",
    "2-3",
    "Straße",
    'the "best"',
    "Cat",
    "cat",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("circle", [0]),
        ("circle,square", [0, 1]),
        (" square , 0 ", [1, 0]),
        ("0-2,square,9", [0, 1, 2, 1, 9]),
        ("T-shirt/top", [2]),
        ("circle,T-shirt/top,3-4", [0, 2, 3, 4]),
        ("7", [7]),
        ('"7"', [4]),
        ('"7",7', [4, 7]),
        ("2-3", [2, 3]),
        ('"2-3"', [5]),  # a number is an id
        ('"tench, Tinca"', [3]),
        ('0,"tench, Tinca",1', [0, 3, 1]),
        ("tench, Tinca", [3]),
        ('"the ""best"""', [7]),
        ("CIRCLE", [0]),
        ("strasse", [6]),
        ("Strasse", [6]),
        ("Cat", [8]),
        ("cat", [9]),
        ('"circle"', [0]),
    ],
)
def test_parse_reads_names_ids_and_ranges(text, expected):
    """Ids, ranges, names with and without quotes, upper case and commas: each reading is the one
    that its line expects."""
    assert labels.parse(text, NAMES) == expected


def test_parse_compares_accents_however_they_are_composed():
    """A folder of macOS has the letter and the accent apart, and a keyboard gives them as one."""
    assert labels.parse("caf\u00e9", ["cafe\u0301", "tea"]) == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("squre", "'squre' is no class of the model; did you mean 'square'?"),
        ("CIRCEL", "did you mean 'circle'?"),
        ("circle,xyzzy", "'xyzzy' is no class of the model; classes: circle, square"),
        ("CAT", "'CAT' is no class"),
        ("", "'' is not a class id"),
        ("circle,,1", "'' is not a class id"),
        ('"circle', "double quote"),
        ('"circle"s', "double quote"),
        ('""', "is not a class id"),
        ("5-3", "write 3-5"),
        ("99999999", "goes beyond"),
        ('"3"', "'3' is no class"),
        ("-1", "'-1' is no class"),
        ("1-", "'1-' is no class"),
        ("tench, Tinka", "'tench'"),
    ],
)
def test_parse_names_what_is_no_class(text, message):
    """The error is one line with the text that is no class, the option, and the nearest name if
    there is one."""
    with pytest.raises(UserError) as error:
        labels.parse(text, NAMES)
    assert (
        message in str(error.value)
        and "--labels" in str(error.value)
        and "\n" not in str(error.value)
    )


def test_parse_lists_few_of_many_classes():
    """Of 1000 names the error lists only the first, and says how many there are."""
    with pytest.raises(UserError) as error:
        labels.parse("xyzzy", [f"class {i}" for i in range(1000)])
    assert "(1000 in all)" in str(error.value) and len(str(error.value)) < 250


def test_parse_without_names_takes_ids_alone():
    """A model without class names reads ids and ranges, and the error for a name says that it has
    none."""
    assert labels.parse("0-2,5") == [0, 1, 2, 5]
    with pytest.raises(
        UserError, match="'circle' is not a class id, and the model carries no class names"
    ):
        labels.parse("circle")


def test_parse_one_refuses_several():
    """A single class name becomes its id, and a range of three classes is refused with the option
    and the number."""
    assert labels.parse_one("square", NAMES) == 1
    with pytest.raises(UserError, match="--label '0-2' is 3 classes; it must be one"):
        labels.parse_one("0-2", NAMES)


def test_remarks_tell_ids_that_are_other_classes_names():
    """Folders 1 to 3 have ids 0 to 2: who writes 1 may mean either."""
    (note,) = labels.warnings("1", [1], ("1", "2", "3"), num_classes=3)
    assert "the class of id 1, '2'" in note and "the class named '1' has id 0" in note
    assert labels.warnings('"1",0,2', [0, 0, 2], ("0", "1", "2"), num_classes=3) == []
    (note,) = labels.warnings("999", [999], ("cat", "dog"), num_classes=1000)
    assert "999" in note and "2 classes" in note
    assert labels.warnings("1000,1", [1000, 1], ("cat", "dog"), num_classes=1000) == []  # no class


def test_title_and_describe_name_classes_and_ids():
    """Classes without a name are called by their id and the id after the last is no class; names
    that only repeat the ids are left out, and long lists are cut."""
    assert [labels.title(i, ("cat", "dog"), 3) for i in (1, 2, 3)] == ["dog", "2", "no class"]
    assert labels.describe([1, 0, 1], ("cat", "dog"), 2) == "1 dog, 0 cat"
    assert labels.describe([1, 0], ("0", "1"), 2) == labels.describe([1, 0], (), 2) == ""
    assert labels.describe(range(12), [f"c{i}" for i in range(12)], 12).endswith(
        "9 c9, ... (12 classes)"
    )


def test_pipeline_takes_class_names():
    """In Python a text is a name and a number an id, whatever the name looks like."""
    names = ("a", "b", "0", *"defghij")
    for chosen, expected in (
        ("b", [1]),
        (["b", 0, "0"], [1, 0, 2]),
        (np.asarray(["b", "a"]), [1, 0]),
        ([2, 1], [2, 1]),
    ):
        assert validate.labels(small.MODEL, chosen, names).tolist() == expected
    with pytest.raises(UserError, match="label 'k' is no class of the model"):
        validate.labels(small.MODEL, ["k"], names)
    with pytest.raises(UserError, match="carries no class names"):
        validate.labels(small.MODEL, ["a"])


def test_model_directory_holds_class_names(tmp_path):
    """A model keeps its class names when it is saved, loaded, spread over devices or stored in
    another dtype."""
    from var_jax import Pipeline

    names = tuple(f"class {i}" for i in range(10))
    model = Pipeline(small.MODEL, small.pipeline().params, names)
    model.save(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model")
    assert (
        loaded.class_names
        == names
        == loaded.astype("bfloat16").class_names
        == loaded.spread().class_names
    )
    small.pipeline().save(tmp_path / "model")  # of a model without them, no others' stay
    assert Pipeline.from_pretrained(tmp_path / "model").class_names == ()
    for broken in ('{"class_names": 3}', '{"class_names": [1]}', "[]", "{"):
        (tmp_path / "model" / "data.json").write_text(broken)
        with pytest.raises(UserError, match=r"data\.json"):
            model_directory.class_names(model_directory.require_directory(tmp_path / "model"))


@pytest.mark.parametrize("name", ["cat", "ring, thin", "7", "3-5", 'a "b"', " cat", "a-b", "東京"])
def test_written_names_are_read_back(name):
    """A line that lists classes is where a user copies a name from."""
    names = ["other", name]
    assert labels.parse(f"{labels.written('other')},{labels.written(name)}", names) == [0, 1]
    assert f"1 {labels.written(name)}" in labels.describe([0, 1], names, 2)
