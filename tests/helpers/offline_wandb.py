"""Reads the file that the package wandb keeps of an offline run, and a stand-in for the package."""

import types
from pathlib import Path

BLOCK, HEADER = 32768, 7  # LevelDB's log: checksum (4 bytes), length (2), kind (1), then the data
FILE_HEADER = 7
FULL, LAST = 1, 4


def history(file: Path) -> list[dict[str, str]]:
    """Returns the logged values of an offline run's .wandb file as JSON texts, a dict per call."""
    from wandb.proto import wandb_internal_pb2

    logged, data, at, record = [], file.read_bytes(), FILE_HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block is padding
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            parsed, record = wandb_internal_pb2.Record.FromString(record), b""
            if parsed.HasField("history"):
                logged.append(
                    {
                        item.key or "/".join(item.nested_key): item.value_json
                        for item in parsed.history.item
                    }
                )
    return logged


class StandIn(types.ModuleType):
    """The part of the package's public API that a run calls; it notes every call.

    Attributes:
      runs: the arguments of each `init`, with "logged" and "exit_code".
      refusal: the error that `init` raises.
      failure: the error that everything else of a run raises.
    """

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.refusal, self.failure = [], None, None

    def init(self, **arguments):
        if self.refusal:
            raise self.refusal
        self.runs.append({**arguments, "logged": []})
        return StandInRun(self, self.runs[-1])

    def Settings(self, **settings):  # noqa: N802
        return settings

    def Image(self, array):  # noqa: N802
        self.fail()
        return ("image", array.shape)

    def fail(self):
        if self.failure:
            raise self.failure


class StandInRun:
    """What `init` returns."""

    def __init__(self, package: StandIn, notes: dict):
        self._package, self._notes = package, notes

    def define_metric(self, name: str, step_metric: str):
        self._notes["axes"] = (name, step_metric)

    def log(self, values: dict):
        self._notes["calls"] = self._notes.get("calls", 0) + 1
        self._package.fail()
        self._notes["logged"].append(values)

    def finish(self, exit_code: int):
        self._notes["exit_code"] = exit_code
        self._package.fail()
