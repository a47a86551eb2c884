"""What a release of the plugin says of one name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from ci.torch_npu_names.uses import Use


@dataclass(frozen=True)
class Answer:
    """text: a cell of the table. good: the name is there, and takes the arguments that are given."""

    text: str
    good: bool


def judge(where: str | None, signature: Callable[[], inspect.Signature | None], uses: list[Use]) -> Answer:
    """The answer on a name that is found `where` (None: nowhere).

    signature: tells that of a callable, None where it has none to look at: arguments are not checked then.
    """
    if where is None:
        return Answer("MISSING", False)
    calls = [use for use in uses if use.call]
    if not calls:
        return Answer(where, True)
    taken = signature()
    if taken is None:
        return Answer(f"{where}, arguments not checked", True)
    for use in calls:
        if problem := use.call.problem(taken):
            return Answer(f"{where}, BUT {problem} ({use.file}:{use.line})", False)
    return Answer(where, True)
