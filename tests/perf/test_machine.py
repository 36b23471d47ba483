"""Files of raw figures say where, when and with what they were measured."""

import datetime
import importlib.metadata
import json

from var_jax.perf import machine


def test_describe_names_the_day_the_processor_and_the_versions():
    """What a reader of a file needs to tell two measurements apart; all of it is JSON."""
    figures = machine.describe(("jax", "no-such-distribution"))
    assert json.loads(json.dumps(figures)) == figures
    assert figures["date"] == datetime.date.today().isoformat()
    assert figures["processor"] and figures["cores"] >= 1
    assert figures["versions"] == {"jax": importlib.metadata.version("jax")}
