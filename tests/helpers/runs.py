"""What tests of whole training runs look at, and what they leave out."""

import json

from PIL import Image
from tensorboardX.proto.event_pb2 import Event

TIMES = (
    "steps_per_s",
    "images_per_s",
    "tokens_per_s",
    "flops_per_s",
)  # what may differ between equal runs


class NoEvaluator:
    """Stands in where held-out metrics are not asked for: its programs take a third of a small
    run's time."""

    def __init__(self, *_):
        pass

    def metrics(self, _):
        return {"loss": 0.0}

    def picture(self, _):
        return Image.new("RGB", (2, 2))


def records(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir) -> list[dict]:
    """Records without what may differ between equal runs."""
    return [
        {name: value for name, value in record.items() if name not in TIMES}
        for record in records(workdir)
    ]


def board_tags(workdir) -> set[tuple[int, str]]:
    """(step, tag) of every value in the event files: length (8 bytes), checksum (4), event,
    checksum (4)."""
    found = set()
    for file in (workdir / "tensorboard").glob("events*"):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found |= {(event.step, value.tag) for value in event.summary.value}
            at += 16 + length
    return found
