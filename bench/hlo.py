"""A compiled XLA program's text as kernels: what each reads and writes, computes, and how often it runs.

Bytes are those of a kernel's operands and results, as if nothing of them stayed in a cache. Of an operand, a slice or
gathered rows count alone where nothing else of it is read, and of a result the slice that an update in place writes; a
scatter counts whole. A loop whose turns XLA does not know raises `ValueError`.
Operations are those of matrix products (2 for a multiplication and an addition); XLA's text says none for cuDNN's
attention.
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
    """The kernels that a compiled module (`compiled.as_text()`) runs, in order; loops by their known turns."""
    computations, entry = parse(text)
    return list(_walk(computations, entry, 1))


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """A module's computations and the name of the one that is the program."""
    computations: dict[str, Computation] = {}
    entry, inside = "", None
    for line in text.splitlines():
        start = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if start:
            inside = computations.setdefault(start[2], {})
            entry = start[2] if start[1] else entry
        elif inside is not None and (found := INSTRUCTION.match(line)):
            root, name, shape, op, rest = found.groups()
            inside[name] = Instruction(name, shape, op, _operands(rest), line, bool(root))
    return computations, entry


def _operands(rest: str) -> tuple[str, ...]:
    """Names up to the parenthesis that closes the operands, of which some are written with their shapes."""
    depth, end = 1, 0
    while depth and end < len(rest):
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    return tuple(re.findall(r"%([\w.\-]+)", rest[:end]))


def _walk(computations: dict[str, Computation], name: str, times: int) -> Iterator[Kernel]:
    here = computations[name]
    for found in here.values():
        called = {key: _attribute(found, key) for key in ("body", "to_apply", "calls", "called_computations")}
        if found.op == "while":
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', found.text)
            if not turns:
                raise ValueError(f"the turns of the loop {found.name} are not known")
            yield from _walk(computations, called["body"], times * int(turns[1]))
        elif found.op == "call":
            yield from _walk(computations, called["to_apply"], times)
        elif found.op not in NO_WORK:
            yield _kernel(found, here, computations.get(called["calls"], {}), times)


def _kernel(found: Instruction, here: Computation, inside: Computation, times: int) -> Kernel:
    target = _attribute(found, "custom_call_target", r'"([^"]*)"')
    flops = sum(_dot_flops(each, inside) for each in inside.values()) or _dot_flops(found, here)
    kind = "product" if flops else "attention" if "fmha" in target or "Attention" in target else "pass"
    traffic = _fused_bytes(inside) if inside else size(found.shape) + sum(size(here[o].shape) for o in found.operands)
    workspace = sum(int(n) for n in re.findall(r"\bs8\[(\d+)\]", found.shape)) if target else 0
    source = _attribute(found, "op_name", r'"([^"]*)"')
    return Kernel(found.name, kind, times, traffic - workspace, flops, found.shape, source)


def _fused_bytes(inside: Computation) -> int:
    """What a fusion reads of its parameters and writes of its root."""
    users: dict[str, list[Instruction]] = {}
    for each in inside.values():
        for operand in each.operands:
            users.setdefault(operand, []).append(each)
    read = sum(_read(each, users) for each in inside.values() if each.op == "parameter")
    return read + sum(_written(each, inside) for each in inside.values() if each.root)


def _read(array: Instruction, users: dict[str, list[Instruction]]) -> int:
    """Bytes of an array that its users read: all of it, or the parts of it that they take."""
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


def _dot_flops(found: Instruction, here: Computation) -> int:
    """Operations of a `dot`, or of a call of cuBLAS that stands for one; 0 for anything else."""
    if found.op == "dot":
        contracted = _attribute(found, "lhs_contracting_dims", r"\{([\d,]*)\}")
    elif "__cublas$" in found.text:
        contracted = re.sub('"', "", _attribute(found, '"lhs_contracting_dimensions"', r"\[([^\]]*)\]", ":"))
    else:
        return 0
    left = dimensions(here[found.operands[0]].shape)
    return 2 * math.prod(dimensions(found.shape)) * math.prod(left[int(axis)] for axis in contracted.split(",") if axis)


def dimensions(shape: str) -> list[int]:
    """The axes of a shape, or of the first array of a tuple's."""
    found = SHAPE.search(shape)
    return [int(axis) for axis in found[2].split(",") if axis] if found else []


def size(shape: str) -> int:
    """Bytes of a shape, or of all arrays of a tuple's."""
    return sum(
        SIZES.get(kind, 0) * math.prod(map(int, axes.split(",") if axes else [])) for kind, axes in SHAPE.findall(shape)
    )


def _attribute(found: Instruction, key: str, value: str = r"%?([\w.\-]+)", sign: str = "=") -> str:
    match = re.search(rf"{re.escape(key)}{sign}{value}", found.text)
    return match[1] if match else ""


def total(found: list[Kernel], what: Callable[[Kernel], float]) -> float:
    """The sum of `what` over every run of every kernel."""
    return sum(kernel.count * what(kernel) for kernel in found)
