"""Parses the text of a compiled XLA program into kernels: bytes read and written, operations, number of runs.

Bytes are those of operands and results, as if nothing stayed in a cache. Of an operand, only a slice or gathered rows
count if nothing else of it is read; of a result, only the slice that an in-place update writes. A scatter counts fully.
A loop with an unknown trip count raises `ValueError`. Operations are those of matrix products (2 per multiply-add);
XLA's text gives none for cuDNN's attention.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

SIZES = {"pred": 1, "s4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
SIZES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w\-]+)\((.*)$")
NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"}
NO_WORK |= {"partition-id", "replica-id", "copy-done", "async-done"}


class Kernel(NamedTuple):
    """`kind`: product, attention (cuDNN's) or pass; `bytes` and `flops` of one run; `source` is JAX's name for it."""

    name: str
    kind: str
    count: int
    bytes: int
    flops: int
    shape: str
    source: str


class Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    text: str
    root: bool


Computation = dict[str, Instruction]


def kernels(text: str) -> list[Kernel]:
    """The kernels that a compiled module (`compiled.as_text()`) runs, in order, with their trip counts."""
    computations, entry = parse(text)
    return list(_walk(computations, entry, 1))


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module and the name of its entry computation."""
    computations: dict[str, Computation] = {}
    entry, inside = "", None
    for line in text.splitlines():
        start = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if start:
            inside = computations.setdefault(start[2], {})
            entry = start[2] if start[1] else entry
        elif inside is not None and (match := INSTRUCTION.match(line)):
            root, name, shape, op, rest = match.groups()
            inside[name] = Instruction(name, shape, op, _operands(rest), line, bool(root))
    return computations, entry


def _operands(rest: str) -> tuple[str, ...]:
    """The operands' names, up to their closing parenthesis; some are written with their shapes."""
    depth, end = 1, 0
    while depth and end < len(rest):
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    return tuple(re.findall(r"%([\w.\-]+)", rest[:end]))


def _walk(computations: dict[str, Computation], name: str, times: int) -> Iterator[Kernel]:
    computation = computations[name]
    for instruction in computation.values():
        called = {key: _attribute(instruction, key) for key in ("body", "to_apply", "calls", "called_computations")}
        if instruction.op == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.text)
            if not trips:
                raise ValueError(f"the trip count of the loop {instruction.name} is unknown")
            yield from _walk(computations, called["body"], times * int(trips[1]))
        elif instruction.op == "call":
            yield from _walk(computations, called["to_apply"], times)
        elif instruction.op not in NO_WORK:
            yield _kernel(instruction, computation, computations.get(called["calls"], {}), times)


def _kernel(instruction: Instruction, computation: Computation, inside: Computation, times: int) -> Kernel:
    target = _attribute(instruction, "custom_call_target", r'"([^"]*)"')
    flops = sum(_dot_flops(each, inside) for each in inside.values()) or _dot_flops(instruction, computation)
    kind = "product" if flops else "attention" if "fmha" in target or "Attention" in target else "pass"
    unfused = size(instruction.shape) + sum(size(computation[name].shape) for name in instruction.operands)
    traffic = _fused_bytes(inside) if inside else unfused
    workspace = sum(int(n) for n in re.findall(r"\bs8\[(\d+)\]", instruction.shape)) if target else 0
    source = _attribute(instruction, "op_name", r'"([^"]*)"')
    return Kernel(instruction.name, kind, times, traffic - workspace, flops, instruction.shape, source)


def _fused_bytes(inside: Computation) -> int:
    """The bytes that a fusion reads of its parameters and writes of its root."""
    users: dict[str, list[Instruction]] = {}
    for each in inside.values():
        for operand in each.operands:
            users.setdefault(operand, []).append(each)
    read = sum(_read(each, users) for each in inside.values() if each.op == "parameter")
    return read + sum(_written(each, inside) for each in inside.values() if each.root)


def _read(array: Instruction, users: dict[str, list[Instruction]]) -> int:
    """The bytes of an array that its users read: all, or only the slices they take."""
    total = 0
    for user in users.get(array.name, []):
        if user.op == "bitcast":
            total += _read(user, users)
        elif user.op in ("slice", "dynamic-slice") or (user.op == "gather" and user.operands[0] == array.name):
            total += size(user.shape)
        elif user.op != "dynamic-update-slice" or user.operands[0] != array.name:
            return size(array.shape)
    return min(total, size(array.shape))


def _written(array: Instruction, inside: Computation) -> int:
    if array.op == "tuple":
        return sum(_written(inside[each], inside) for each in array.operands)
    if array.op == "bitcast":
        return _written(inside[array.operands[0]], inside)
    if array.op == "dynamic-update-slice":
        return size(inside[array.operands[1]].shape)
    return size(array.shape)


def _dot_flops(instruction: Instruction, computation: Computation) -> int:
    """Operations of a `dot` or of a call of cuBLAS; 0 for anything else."""
    if instruction.op == "dot":
        contracted = _attribute(instruction, "lhs_contracting_dims", r"\{([\d,]*)\}")
    elif "__cublas$" in instruction.text:
        quoted = _attribute(instruction, '"lhs_contracting_dimensions"', r"\[([^\]]*)\]", ":")
        contracted = quoted.replace('"', "")
    else:
        return 0
    left = dimensions(computation[instruction.operands[0]].shape)
    inner = math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
    return 2 * math.prod(dimensions(instruction.shape)) * inner


def dimensions(shape: str) -> list[int]:
    """The axes of a shape, or of the first array of a tuple's."""
    match = SHAPE.search(shape)
    return [int(axis) for axis in match[2].split(",") if axis] if match else []


def size(shape: str) -> int:
    """Bytes of a shape, or of all arrays of a tuple's."""
    return sum(
        SIZES.get(kind, 0) * math.prod(map(int, axes.split(",") if axes else [])) for kind, axes in SHAPE.findall(shape)
    )


def _attribute(instruction: Instruction, key: str, value: str = r"%?([\w.\-]+)", sign: str = "=") -> str:
    match = re.search(rf"{re.escape(key)}{sign}{value}", instruction.text)
    return match[1] if match else ""


def total(kernels: list[Kernel], quantity: Callable[[Kernel], float]) -> float:
    """The sum of `quantity` over every run of every kernel."""
    return sum(kernel.count * quantity(kernel) for kernel in kernels)
