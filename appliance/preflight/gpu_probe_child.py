"""One Triton kernel and one 4-bit round trip on the device, in a process of its own: it may crash or hang.

preflight/gpu_probe.py starts it and judges. One line of JSON for each part that finished: its name, how many seconds it
took, and the error, empty if the values match those of the CPU.

>>> python -m appliance.preflight.gpu_probe_child cuda 10 triton bitsandbytes     # or cpu, in Triton's interpreter
{"part": "device", "seconds": 0.4, "error": ""}
{"part": "triton", "seconds": 1.1, "error": ""}
{"part": "bitsandbytes", "seconds": 0.0, "error": ""}
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from appliance.process import child

TIMEOUT = "Timeout (0:00:"  # how faulthandler begins what it writes when the deadline has passed
MARK = "gpu probe: "  # starts a line on standard error: what follows belongs to the part named there
NUMBERS = 4096
# NF4 rounds a block of 64 numbers to 16 values between -1 and 1 times the block's largest (Dettmers et al. 2023, QLoRA,
# appendix E). The widest gap is from -1 to -0.6961928, so no number is off by more than half of it.
NF4_BLOCK, NF4_WORST = 64, (1 - 0.6961928) / 2


def main(arguments: Sequence[str]) -> None:
    """`arguments`: the device, "cuda" or "cpu", the seconds that a part may take, and the parts to try, of PARTS."""
    child.die_with_parent()
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not a message
    device, seconds, *parts = arguments
    deadline = float(seconds)
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is defined
    if _tried("device", lambda: _open(device), device, deadline, messages):
        for part in parts:
            _tried(part, PARTS[part], device, deadline, messages)


def _tried(
    part: str, prepare: Callable[[], Callable[[str], None]], device: str, deadline: float, messages: TextIO
) -> bool:
    """Import without a deadline, run with one (in seconds), and report how it went; returns whether it went well."""
    began, error = time.monotonic(), ""
    sys.stderr.write(f"\n{MARK}{part}\n")
    sys.stderr.flush()
    try:
        run = prepare()
        faulthandler.dump_traceback_later(deadline, exit=True)  # also while a C library holds the interpreter
        began = time.monotonic()
        run(device)
    except Exception as caught:  # noqa: BLE001  what a library raises here is the finding
        error = "".join(traceback.format_exception_only(caught)).strip()
    faulthandler.cancel_dump_traceback_later()
    print(
        json.dumps({"part": part, "seconds": round(time.monotonic() - began, 1), "error": error}),
        file=messages,
        flush=True,
    )
    return not error


def _open(device: str) -> Callable[[str], None]:
    """A context on the device, which takes seconds if the driver has to wake the card: no part should pay for it."""
    import torch

    torch.zeros(1, device=device)
    return lambda _: None


def kernel() -> Any:
    """A Triton kernel that adds two vectors of numbers."""
    import triton
    import triton.language as tl

    # Triton compiles the annotations with the rest and knows no Any
    def add(left, right, total, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        tl.store(total + at, tl.load(left + at, mask=inside) + tl.load(right + at, mask=inside), mask=inside)

    return triton.jit(add)


def _triton() -> Callable[[str], None]:
    import torch

    add = kernel()

    def run(device: str) -> None:
        left, right = torch.arange(NUMBERS, dtype=torch.float32), torch.full((NUMBERS,), 0.5)
        total = torch.zeros(NUMBERS, device=device)
        add[(NUMBERS // 256,)](left.to(device), right.to(device), total, NUMBERS, BLOCK=256)
        _refuse_wrong(total.cpu(), left + right, torch.zeros(1))

    return run


def _bitsandbytes() -> Callable[[str], None]:
    import torch
    from bitsandbytes import functional

    def run(device: str) -> None:
        numbers = torch.sin(torch.arange(NUMBERS, dtype=torch.float32))
        packed, state = functional.quantize_4bit(numbers.to(device), blocksize=NF4_BLOCK, quant_type="nf4")
        back = functional.dequantize_4bit(packed, state).cpu()
        largest = numbers.view(-1, NF4_BLOCK).abs().amax(1, keepdim=True)
        bound = (largest * NF4_WORST).expand(-1, NF4_BLOCK).reshape(-1) + 1e-6  # float32 rounds the scales
        _refuse_wrong(back, numbers, bound)

    return run


def _refuse_wrong(seen: Any, wanted: Any, bound: Any) -> None:
    """Raises ValueError: a number is off by more than its bound, or is NaN."""
    wrong = ~((seen - wanted).abs() <= bound)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"wrong values: {int(wrong.sum())} of {len(wanted)} numbers differ from the CPU's, the first by "
            f"{float(seen[first] - wanted[first])}"
        )


PARTS = {"triton": _triton, "bitsandbytes": _bitsandbytes}

if __name__ == "__main__":
    main(sys.argv[1:])
