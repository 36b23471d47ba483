"""What a compiled program does, read off its HLO text: matrix FLOPs, bytes of device memory,
collectives.

Ours, because XLA's own cost analysis counts the body of a loop once (a scanned layer once, whatever
the depth), says nothing of collectives, and takes reads of on-chip memory for reads of device
memory. Loops count times their trips.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {
    "pred": 1,
    "token": 0,
    "s4": 0.5,
    "u4": 0.5,
}  # bytes; of the others the name tells the bits
# Nothing moves: names, views, and the second half of what the first half accounts for.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "partition-id",
    "replica-id",
    "after-all",
    "opt-barrier",
    "iota",
}
# Splash attention's kernels (batch, heads, length, head_dim), by the products of queries and keys
# that each computes.
KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
CALLS = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")


@dataclasses.dataclass(frozen=True)
class Array:
    """Attributes:
    on_chip: in vector or scalar memory rather than in device memory (HBM).
    """

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> float:
        width = (
            WIDTHS.get(self.dtype)
            if self.dtype in WIDTHS
            else int(re.findall(r"\d+", self.dtype)[0]) / 8
        )
        return math.prod(self.shape) * width

    @property
    def hbm_bytes(self) -> float:
        return 0.0 if self.on_chip else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def output(self) -> Array:
        return self.outputs[0]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Attributes:
    kind: one of KINDS.
    bytes: of the whole array on one device: what a gather makes, what a reduction takes.
    group: partitions that take part with partition 0; for a permutation, one pair of source and
    target. times: how often a step runs it.
    dtype: of the largest array in it, in HLO's spelling.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]
    times: int
    dtype: str = ""


class Program:
    """The text of `jax.stages.Compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        for line in text.splitlines():
            if opened := re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line):
                current = self.computations.setdefault(opened[2], {})
                self.entry = opened[2] if opened[1] else self.entry
            elif line.startswith("  ") and (instruction := _instruction(line)):
                current[instruction.name] = instruction

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often a step runs each computation that is not inside a fusion."""
        runs: dict[str, int] = {}

        def visit(name: str, times: int):
            runs[name] = runs.get(name, 0) + times
            for op in self.computations[name].values():
                if op.opcode in ("while", "conditional", "call", "async-start"):
                    trips = self._trips(name, op) if op.opcode == "while" else 1
                    for called in CALLS.findall(op.attributes) + _branches(op.attributes):
                        visit(called, times * trips)

        visit(self.entry, 1)
        return runs

    def _trips(self, caller: str, loop: Instruction) -> int:
        """Iterations of a loop that counts up to a constant, as `lax.scan` does."""
        if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
            return int(known[1])
        condition = self.computations[re.search(r"condition=%([\w.\-]+)", loop.attributes)[1]]
        limits = [
            int(op.attributes)
            for op in condition.values()
            if op.opcode == "constant"
            and op.attributes.isdigit()
            and op.output.dtype in ("s32", "u32")
        ]
        if len(limits) == 1:
            return limits[0]
        initial = self.computations[caller].get(loop.operands[0])
        for op in condition.values():  # or the limit is carried along in the loop's state
            index = re.search(r"index=(\d+)", op.attributes)
            if (
                op.opcode == "get-tuple-element"
                and index
                and initial is not None
                and initial.opcode == "tuple"
            ):
                carried = self.computations[caller].get(initial.operands[int(index[1])])
                if carried and carried.opcode == "constant" and carried.attributes.isdigit():
                    limits.append(int(carried.attributes))
        return max(limits, default=1)

    def _everywhere(self) -> Iterator[tuple[dict[str, Instruction], Instruction, int]]:
        """(computation, instruction, times) of all instructions, fused ones too."""

        def inside(name: str, times: int):
            for op in self.computations[name].values():
                yield self.computations[name], op, times
                if op.opcode == "fusion":
                    yield from inside(CALLS.search(op.attributes)[1], times)

        for name, times in self.runs.items():
            yield from inside(name, times)

    def matrix_flops(self, kernel_share: float = 1.0) -> float:
        """FLOPs of matrix products and convolutions of one device (two a multiply-add), attention
        kernels' too.

        Args:
          kernel_share: of the pairs of a query and a key, those that lie in tiles the kernels
            compute.
        """
        return sum(
            times * _flops(scope, op, kernel_share) for scope, op, times in self._everywhere()
        )

    def collectives(self) -> list[Collective]:
        found = []
        for scope, op, times in self._everywhere():
            kind = op.opcode.removesuffix("-start")
            if kind in KINDS:
                taken = sum(a.bytes for name in op.operands for a in scope[name].outputs)
                made = sum(a.bytes for a in op.outputs)
                if op.opcode.endswith("-start") and kind in ("all-gather", "reduce-scatter"):
                    made -= taken  # the tuple holds both
                size = taken if kind in ("all-reduce", "collective-permute") else max(taken, made)
                arrays = [a for name in op.operands for a in scope[name].outputs]
                dtype = max(arrays, key=lambda a: a.bytes).dtype if arrays else ""
                found.append(Collective(kind, size, first(op.attributes), times, dtype))
        return found

    def hbm_bytes(self) -> float:
        """Bytes that one device reads from and writes to its memory, by the operands and results of
        every operation.

        Of a slice that a fusion takes from a larger array, or writes into one in place, only the
        slice counts.
        """
        return sum(
            times * self._traffic(self.computations[name], op)
            for name, times in self.runs.items()
            for op in self.computations[name].values()
        )

    def _traffic(self, scope: dict[str, Instruction], op: Instruction) -> float:
        if op.opcode in FREE or op.opcode.endswith(("-done", "-update")):
            return 0.0
        operands = [scope[name].output for name in op.operands if name in scope]
        written = sum(a.hbm_bytes for a in op.outputs)
        if op.opcode == "copy-start":
            return sum(a.hbm_bytes for a in op.outputs[:2])
        if op.opcode in ("slice", "dynamic-slice", "gather", "slice-start", "dynamic-slice-start"):
            taken = op.outputs[1] if op.opcode.endswith("-start") else op.output
            return taken.hbm_bytes + (0.0 if operands[0].on_chip else taken.bytes)
        if op.opcode in ("dynamic-update-slice", "scatter"):
            return 2 * operands[1 if op.opcode == "dynamic-update-slice" else -1].hbm_bytes
        if op.opcode == "fusion":
            return self._fused_traffic(op, operands)
        if op.opcode.endswith("-start"):
            return sum(a.hbm_bytes for a in op.outputs)
        return written + sum(a.hbm_bytes for a in operands)

    def _fused_traffic(self, op: Instruction, operands: Sequence[Array]) -> float:
        body = self.computations[CALLS.search(op.attributes)[1]]
        total = sum(
            self._taken(body, i) for i, operand in enumerate(operands) if not operand.on_chip
        )
        root = next(inner for inner in body.values() if inner.root)
        made = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for array, inner in zip(op.outputs, made, strict=False):
            while inner.opcode in ("bitcast", "convert", "copy"):
                inner = body[inner.operands[0]]
            in_place = inner.opcode == "dynamic-update-slice"
            total += (
                0.0
                if array.on_chip
                else body[inner.operands[1]].output.bytes
                if in_place
                else array.bytes
            )
        return total

    def _taken(self, body: dict[str, Instruction], index: int) -> float:
        """Bytes that a fusion reads of its operand `index`: all, or the slices that it takes."""
        parameter = next(
            op for op in body.values() if op.opcode == "parameter" and int(op.attributes) == index
        )
        taken, names = 0.0, [parameter.name]
        for op in body.values():  # in order of definition
            for place, name in enumerate(op.operands):
                if name not in names:
                    continue
                if op.opcode == "bitcast":
                    names.append(op.name)
                elif op.opcode == "fusion":
                    taken += self._taken(self.computations[CALLS.search(op.attributes)[1]], place)
                elif op.opcode in ("slice", "dynamic-slice", "gather"):
                    taken += op.output.bytes if place == 0 else parameter.output.bytes
                elif (
                    op.opcode != "dynamic-update-slice" or place
                ):  # written into in place, it is not read
                    taken += parameter.output.bytes
        return min(taken, parameter.output.bytes)


def _flops(scope: dict[str, Instruction], op: Instruction, kernel_share: float) -> float:
    if op.opcode == "custom-call":
        kernels = [count for name, count in KERNEL_PRODUCTS.items() if op.name.startswith(name)]
        if not kernels:
            return 0.0
        queries, keys = [s for name in op.operands if len(s := scope[name].output.shape) == 4][:2]
        return 2.0 * math.prod(queries) * keys[2] * kernels[0] * kernel_share
    if op.opcode == "dot":
        left = scope[op.operands[0]].output
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)[1]
        return (
            2.0
            * math.prod(op.output.shape)
            * math.prod(left.shape[int(i)] for i in contracted.split(",") if i)
        )
    if op.opcode != "convolution":
        return 0.0
    image, kernel = (scope[name].output.shape for name in op.operands)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
    products, output = 1, list(op.output.shape)
    for axis in (c for c in labels[1] if c.isdigit()):
        out = labels[3].index(axis)
        products *= _products(
            op.attributes,
            int(axis),
            image[labels[1].index(axis)],
            kernel[labels[2].index(axis)],
            output[out],
        )
        output[out] = 1
    return 2.0 * math.prod(output) * kernel[labels[2].index("i")] * products


def _products(attributes: str, axis: int, image: int, kernel: int, output: int) -> int:
    """Pairs of output and kernel positions along one axis that meet an element of the image, not
    padding or a hole.

    A product with batch dimensions is written as a convolution over a padded or dilated image: few
      pairs meet one.
    """

    def setting(key: str, default: str) -> str:
        found = re.search(rf"window={{[^}}]*\b{key}=([\d_x\-]+)", attributes)
        return found[1].split("x")[axis] if found else default

    hole = int(setting("lhs_dilate", "1"))
    places = (
        np.arange(output)[:, None] * int(setting("stride", "1"))
        + np.arange(kernel)[None] * int(setting("rhs_dilate", "1"))
        - int(setting("pad", "0_0").split("_")[0])
    )
    return int(np.sum((places >= 0) & (places <= (image - 1) * hole) & (places % hole == 0)))


def _branches(attributes: str) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    return re.findall(r"%([\w.\-]+)", found[1]) if found else []


def _instruction(line: str) -> Instruction | None:
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
    for dtype, dims, layout in ARRAY.findall(text):
        yield Array(dtype, tuple(int(n) for n in dims.split(",") if n), "S(" in layout)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)


def first(attributes: str) -> tuple[int, ...]:
    """The partitions of the first group of a collective, in any of the notations of HLO.

    Raises:
      ValueError: another notation.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(int(i) for i in listed[1].split(","))
    if iota := re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        return tuple(_iota(iota[3], iota[4])[: int(iota[2])])
    if mesh := MESH.search(attributes):
        return _along(mesh[1], mesh[2], mesh[3], mesh[4])
    raise ValueError(f"unknown notation of a collective's devices: {attributes[:200]}")


def _along(mesh: str, dims: str | None, order: str | None, taken: str) -> tuple[int, ...]:
    """The devices at the start of every axis of a named mesh but the taken ones, of which
    "'a':(m)k" takes a part: the middle one of m x k x the rest."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    total = math.prod(sizes.values())
    ids = np.array(_iota(dims or str(total), order)).reshape(list(sizes.values()) or [1])
    for axis, name in enumerate(sizes):
        part = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?", taken)
        before, size = (int(part[1] or 1), int(part[2] or sizes[name])) if part else (1, 1)
        stride = sizes[name] // (before * size)
        ids = np.take(ids, range(0, stride * size, stride), axis=axis)
    return tuple(ids.ravel().tolist())


def _iota(dims: str, order: str | None) -> list[int]:
    shape = [int(n) for n in dims.split(",")]
    array = np.arange(math.prod(shape)).reshape(shape)
    return (
        array.transpose([int(i) for i in order.split(",")] if order else range(len(shape)))
        .ravel()
        .tolist()
    )
