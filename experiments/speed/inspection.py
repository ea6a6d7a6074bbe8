"""What the compiler says about a program: memory, operations, and which kernels, library calls and loops are in it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

_FUSED_ATTENTION = "__cudnn$fmha"
# Calls that leave the device: Python's callbacks, LAPACK on the host, transfers.
_HOST = re.compile(r"xla_(?:ffi_)?python|callback|^lapack|HostCompute|MoveToHost|MoveToDevice")
_INSTRUCTION = re.compile(r"^ *(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][a-z0-9\-]*)\(", re.MULTILINE)
_CALL = re.compile(r'custom_call_target="([^"]+)"')
# Eigen- and singular value decompositions by a library, with the shapes of what they give.
_SOLVER = re.compile(r'= (.*?) custom-call\(.*custom_call_target="([^"]*(?:syev|gesvd|Eigh|Svd)[^"]*)"', re.IGNORECASE)
_QUARTERED = "EighTpu"  # gives the four quarters of its matrix
_SQUARE = re.compile(r"\[(?:\d+,)*(\d+),\1\]")
_BOUNDED = re.compile(r"\w+\[[^\]]*<=\d")  # a dimension that is known only when the program runs, `f32[<=576]`


def figures(program: Any) -> dict[str, Any]:
    """What a compiled program is, on each device.

    Returns:
      "needed" bytes and of them "arguments" and "temporaries"; "flops" by the compiler's own count (None where it does
      not count; the body of a loop counts once, library calls do not); how often each library function is called
      ("calls"), fused attention kernels among them ("fused_attention"), calls that leave the device ("host"); the side
      of the largest eigen-decomposition that a library does ("solver"); "loops", "fusions", "all_reduces" and
      "all_gathers"; how many dimensions are not known before it runs ("dynamic").
    """
    text, memory = program.as_text(), program.memory_analysis()
    cost = program.cost_analysis() or {}
    calls, kinds = Counter(_CALL.findall(text)), Counter(_INSTRUCTION.findall(text))
    transfers = sum(kinds[kind] for kind in ("outfeed", "infeed", "send", "recv"))
    sides = [
        int(side) * (2 if name == _QUARTERED else 1)
        for shapes, name in _SOLVER.findall(text)
        for side in _SQUARE.findall(shapes)
    ]
    return {
        "needed": needed(program),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": cost.get("flops"),
        "calls": dict(calls.most_common()),
        "fused_attention": sum(count for name, count in calls.items() if name.startswith(_FUSED_ATTENTION)),
        "host": sum(count for name, count in calls.items() if _HOST.search(name)) + transfers,
        "solver": max(sides, default=0),
        "loops": kinds["while"],
        "fusions": kinds["fusion"],
        "all_reduces": kinds["all-reduce"] + kinds["all-reduce-start"],
        "all_gathers": kinds["all-gather"] + kinds["all-gather-start"],
        "dynamic": len(_BOUNDED.findall(text)),
    }


def needed(program: Any) -> int:
    """Bytes of a compiled program on each device: arguments, results and temporaries."""
    memory = program.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return size - memory.alias_size_in_bytes
