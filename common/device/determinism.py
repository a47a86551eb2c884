"""What --deterministic could not do: torch warns of each operator that has no repeatable form, and here they are named.

The warnings come from wherever the operator is called, those of a backward pass from `backward()`; they are a paragraph
each. They are taken out of the stream of warnings, and `news` has a line for each operator.
"""

import re
import warnings

# what torch says: `Context::alertNotDeterministic` and `alertCuBLASConfigNotDeterministic` in aten/src/ATen/Context.cpp
WITHOUT_FORM = r"(\S+) does not have a deterministic implementation"
CUBLAS = r".*not deterministic because it uses CuBLAS"

_found: list[str] | None = None  # operators, in the order in which they came; None: nobody wants to know
_told = 0  # of them


def collect(wanted: bool) -> None:
    """From here on, collect the names of such operators, or do not; those of an earlier run are forgotten."""
    global _found, _told
    _found, _told = [] if wanted else None, 0
    if not wanted:
        return
    # each text once for each place, whatever else the user has chosen; and anew what was seen by an earlier run
    warnings.filterwarnings("default", f"{WITHOUT_FORM}|{CUBLAS}")
    if getattr(warnings.showwarning, "collects", False):
        return
    shown = warnings.showwarning

    def show(message, *about, **more) -> None:
        if _found is None or not _take(str(message)):
            shown(message, *about, **more)

    show.collects = True
    warnings.showwarning = show


def _take(text: str) -> bool:
    """Whether a warning is of an operator without a repeatable form, which is then known."""
    if known := re.match(WITHOUT_FORM, text):
        name = known[1]
    elif re.match(CUBLAS, text, re.DOTALL):
        name = "cuBLAS"
    else:
        return False
    if name not in _found:
        _found.append(name)
    return True


def news() -> list[str]:
    """A line for each operator that was found since the last call."""
    global _told
    new = (_found or [])[_told:]
    _told += len(new)
    words = "has no repeatable form on this device, and two runs may differ by rounding"
    return [f"--deterministic: {name} {words}" for name in new]


def found() -> dict[str, list[str]]:
    """For result.json: the operators of this process; empty where nobody has asked for repeatable ones."""
    return {} if _found is None else {"not_deterministic": list(_found)}
