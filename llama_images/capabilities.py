"""Which machine code runs on which GPU, by CUDA's rules. Pure.

Code for sm_XY runs on GPUs of compute capability X.Z with Z not below Y. Code for sm_XYa runs on X.Y and on
nothing else; llama.cpp's build makes 12X into 12Xa. PTX of compute_XY is compiled by the driver for every GPU
from X.Y on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def runs_on(capability: str, *, sass: Iterable[str], ptx: Iterable[str]) -> bool:
    """Whether a GPU of this compute capability ("12.0") runs code of these architectures ("120a", "75").

    Names with ``sm_`` or ``compute_`` in front are taken too. False for a capability that can't be read.
    """
    match = re.fullmatch(r"(\d{1,2})\.(\d)", capability)
    if match is None:
        return False
    number = int(match[1]) * 10 + int(match[2])
    return any(_code_runs(number, name.removeprefix("sm_")) for name in sass) or any(
        number >= int(name.removeprefix("compute_")) for name in ptx
    )


def _code_runs(number: int, name: str) -> bool:
    code = int(name.rstrip("af"))
    if name.endswith("a"):
        return number == code
    # "f" is code for one family: the same major number, as without a letter.
    return number // 10 == code // 10 and number >= code


def driver_is_enough(found: str, wanted: str) -> bool:
    """Whether a driver of this version ("580.159.04") is at least the wanted one ("580.65.06")."""
    return _version(found) >= _version(wanted)


def _version(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]
