"""Counts matrix FLOPs, bytes of device memory and collectives of a compiled program's HLO text.

XLA's own cost analysis counts the body of a loop once (a scanned layer once, whatever the depth),
has no collectives, and takes reads of on-chip memory for reads of device memory. Here the body of a
loop counts once per trip.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from var_jax.perf.hlo_groups import first_group
from var_jax.perf.hlo_text import Array, Instruction, parse_instruction

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Their work is that of computations.
CALLERS = ("while", "conditional", "call", "call-start", "async-start")
# Instructions that move nothing.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "call-start",
    "partition-id",
    "replica-id",
    "after-all",
    "opt-barrier",
    "iota",
}
# Instructions that give their operand, perhaps in another layout.
RELAID = ("bitcast", "copy")
# Splash attention's kernels (batch, heads, length, head_dim), by the products of queries and keys
# that each computes.
KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
# Custom calls that move nothing: room for an array that is then filled in place, and a view of
# parts that lie next to each other.
FREE_CALLS = re.compile('custom_call_target="(AllocateBuffer|ConcatBitcast)"')
CHAIN = re.compile(r"\bchain_id=")
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
CALLS = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective and how often it runs.

    Attributes:
      kind: one of COLLECTIVES.
      bytes: bytes of the whole array on one device: the result of a gather, the operand of a
        reduction.
      group: partitions that communicate with partition 0; for a permutation, one pair of source and
        target.
      times: number of runs per step.
      dtype: dtype of its largest array, in HLO's spelling.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]
    times: int
    dtype: str = ""


class Program:
    """A compiled program, given by the text of `jax.stages.Compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        for line in text.splitlines():
            if opened := re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line):
                current = self.computations.setdefault(opened[2], {})
                self.entry = opened[2] if opened[1] else self.entry
            elif line.startswith("  ") and (instruction := parse_instruction(line)):
                current[instruction.name] = instruction

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """Returns how often a step runs each computation that is not inside a fusion."""
        runs: dict[str, int] = {}

        def visit(name: str, times: int):
            runs[name] = runs.get(name, 0) + times
            for op in self.computations[name].values():
                if op.opcode in CALLERS:
                    trips = self._trips(name, op) if op.opcode == "while" else 1
                    for called in CALLS.findall(op.attributes) + _branches(op.attributes):
                        visit(called, times * trips)

        visit(self.entry, 1)
        return runs

    def _trips(self, caller: str, loop: Instruction) -> int:
        """Returns the iterations of a loop that counts up to a constant, as `lax.scan` does."""
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

    def _all_instructions(self) -> Iterator[tuple[dict[str, Instruction], Instruction, int]]:
        """Yields (computation, instruction, runs per step) of all instructions, fused ones too."""

        def inside(name: str, times: int):
            for op in self.computations[name].values():
                yield self.computations[name], op, times
                if op.opcode == "fusion":
                    yield from inside(CALLS.search(op.attributes)[1], times)

        for name, times in self.runs.items():
            yield from inside(name, times)

    def matrix_flops(self, kernel_share: float = 1.0) -> float:
        """Returns the FLOPs of matrix products, convolutions and attention kernels per device.

        A multiply-add counts as two.

        Args:
          kernel_share: share of the pairs of a query and a key in blocks that the attention kernels
            compute.
        """
        return sum(
            times * _flops(scope, op, kernel_share) for scope, op, times in self._all_instructions()
        )

    def collectives(self) -> list[Collective]:
        """Returns the collectives of a step.

        The TPU compiler writes one that goes on during other operations as a chain of fusions, each
        of which has it: they share their channel, and are one.
        """
        collectives, chains = [], {}
        for scope, op, times in self._all_instructions():
            kind = op.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                taken = sum(a.bytes for name in op.operands for a in scope[name].outputs)
                made = sum(a.bytes for a in op.outputs)
                if op.opcode.endswith("-start") and kind in ("all-gather", "reduce-scatter"):
                    made -= taken  # the tuple holds both
                size = taken if kind in ("all-reduce", "collective-permute") else max(taken, made)
                arrays = [a for name in op.operands for a in scope[name].outputs]
                dtype = max(arrays, key=lambda a: a.bytes).dtype if arrays else ""
                one = Collective(kind, size, first_group(op.attributes), times, dtype)
                channel = CHANNEL.search(op.attributes)
                if channel and CHAIN.search(op.attributes):
                    pieces = chains.setdefault(channel[1], [])
                    pieces.append(one)
                else:
                    collectives.append(one)
        longest = [max(pieces, key=lambda one: one.times) for pieces in chains.values()]
        return collectives + longest

    def hbm_bytes(self) -> float:
        """Returns the bytes that one device reads from and writes to its memory per step.

        They are those of the operands and results of every operation. If a fusion reads a slice of
        a larger array, or writes one in place, only the slice counts.
        """
        return sum(
            times * self._traffic(self.computations[name], op)
            for name, times in self.runs.items()
            for op in self.computations[name].values()
        )

    def estimated_cycles(self) -> int:
        """Returns the cycles that the TPU compiler expects a step's operations to take, one by one.

        They are those by which it chooses between forms of a program, and know how full the matrix
        units are. Zero for a program of another compiler.
        """
        return sum(
            times * int(estimate[1])
            for name, times in self.runs.items()
            for op in self.computations[name].values()
            if op.opcode not in CALLERS and (estimate := CYCLES.search(op.attributes))
        )

    def _traffic(self, scope: dict[str, Instruction], op: Instruction) -> float:
        if op.opcode in FREE or op.opcode.endswith(("-done", "-update")):
            return 0.0
        if op.opcode == "custom-call" and FREE_CALLS.search(op.attributes):
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
            self._bytes_read(body, i) for i, operand in enumerate(operands) if not operand.on_chip
        )
        root = next(inner for inner in body.values() if inner.root)
        made = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for array, inner in zip(op.outputs, made, strict=False):
            while inner.opcode in ("bitcast", "convert", "copy"):
                inner = body[inner.operands[0]]
            if array.on_chip:
                continue
            in_place = inner.opcode == "dynamic-update-slice"
            total += body[inner.operands[1]].output.bytes if in_place else array.bytes
        return total

    def _bytes_read(self, body: dict[str, Instruction], index: int) -> float:
        """Returns the bytes that a fusion reads of an operand: all, or the slices that it takes."""
        parameter = next(
            op for op in body.values() if op.opcode == "parameter" and int(op.attributes) == index
        )
        taken, names = 0.0, [parameter.name]
        for op in body.values():  # in order of definition
            for place, name in enumerate(op.operands):
                if name not in names:
                    continue
                if self._is_relaid(op):
                    names.append(op.name)
                elif op.opcode == "fusion":
                    called = self.computations[CALLS.search(op.attributes)[1]]
                    taken += self._bytes_read(called, place)
                elif op.opcode in ("slice", "dynamic-slice", "gather"):
                    taken += op.output.bytes if place == 0 else parameter.output.bytes
                elif op.opcode != "dynamic-update-slice" or place:
                    # The first operand of an update in place is written, not read.
                    taken += parameter.output.bytes
        if any(op.root and op.name in names for op in body.values()):
            return parameter.output.bytes
        return min(taken, parameter.output.bytes)

    def _is_relaid(self, op: Instruction) -> bool:
        """Returns whether an instruction of a fusion is its operand, perhaps in another layout.

        A fusion computes only those elements of it that it takes.
        """
        if op.opcode == "fusion":
            called = self.computations[CALLS.search(op.attributes)[1]]
            return all(inner.opcode in ("parameter", *RELAID) for inner in called.values())
        return op.opcode in RELAID


def _flops(scope: dict[str, Instruction], op: Instruction, kernel_share: float) -> float:
    if op.opcode == "custom-call":
        kernels = [count for name, count in KERNEL_PRODUCTS.items() if op.name.startswith(name)]
        if not kernels:
            return 0.0
        # (images, heads, tokens, channels), or without the first for one image; the integers
        # before them say which blocks are computed.
        arrays = [scope[name].output for name in op.operands]
        queries, keys = [x.shape for x in arrays if "f" in x.dtype and len(x.shape) >= 3][:2]
        return 2.0 * math.prod(queries) * keys[-2] * kernels[0] * kernel_share
    if op.opcode == "dot":
        left = scope[op.operands[0]].output
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)[1]
        products = math.prod(left.shape[int(i)] for i in contracted.split(",") if i)
        return 2.0 * math.prod(op.output.shape) * products
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
    """Returns the pairs of output and kernel positions along one axis that meet the image.

    Pairs that meet padding or a hole do not count: HLO writes a product with batch dimensions as a
    convolution over a padded or dilated image, where few pairs meet the image.
    """

    def setting(key: str, default: str) -> str:
        match = re.search(rf"window={{[^}}]*\b{key}=([\d_x\-]+)", attributes)
        return match[1].split("x")[axis] if match else default

    hole = int(setting("lhs_dilate", "1"))
    places = (
        np.arange(output)[:, None] * int(setting("stride", "1"))
        + np.arange(kernel)[None] * int(setting("rhs_dilate", "1"))
        - int(setting("pad", "0_0").split("_")[0])
    )
    return int(np.sum((places >= 0) & (places <= (image - 1) * hole) & (places % hole == 0)))


def _branches(attributes: str) -> list[str]:
    match = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    return re.findall(r"%([\w.\-]+)", match[1]) if match else []
