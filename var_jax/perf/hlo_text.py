"""Parses HLO text: the arrays and instructions of a compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterator

# Bytes of a value, for dtypes whose name does not state their bits.
WIDTHS = {
    "pred": 1,
    "token": 0,
    "s4": 0.5,
    "u4": 0.5,
}
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program.

    Attributes:
      dtype: the dtype in HLO's spelling, such as "bf16".
      shape: the array's shape.
      on_chip: whether it is in vector or scalar memory rather than in device memory (HBM).
    """

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> float:
        """Returns the array's size in bytes."""
        width = WIDTHS.get(self.dtype)
        if width is None:
            width = int(re.findall(r"\d+", self.dtype)[0]) / 8
        return math.prod(self.shape) * width

    @property
    def hbm_bytes(self) -> float:
        """Returns the bytes that it takes in device memory."""
        return 0.0 if self.on_chip else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: unique in its computation.
      opcode: such as "dot".
      outputs: its arrays, several for a tuple.
      operands: names of instructions.
      attributes: the rest of the line; the value of a constant, the index of a parameter.
      root: whether it is the computation's result.
    """

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def output(self) -> Array:
        return self.outputs[0]


def parse_instruction(line: str) -> Instruction | None:
    """Returns the instruction in a line of HLO text, or None for any other line."""
    head = re.match(r"  (ROOT )?%([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    inside, attributes = rest[len(opcode) + 1 : end], rest[end + 1 :]
    literal = opcode in ("constant", "parameter")
    operands = () if literal else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(
        head[2],
        opcode,
        tuple(_arrays(shape)),
        operands,
        inside if literal else attributes,
        bool(head[1]),
    )


def _arrays(text: str) -> Iterator[Array]:
    """Yields the arrays of a shape, which may be a tuple's."""
    for dtype, dims, layout in ARRAY.findall(text):
        yield Array(dtype, tuple(int(n) for n in dims.split(",") if n), "S(" in layout)


def _closing(text: str, start: int) -> int:
    """Returns where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)
