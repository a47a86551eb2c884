"""What the doctor finds, printed line by line, and how errors and sizes read there."""

import re

VALUE_LENGTH, REASON_LENGTH = 90, 200  # letters


class Report:
    """What is found, printed at once: where the output ends, something has crashed or hangs.

    sections: title -> name -> value. missing: what is missing or slow, and what that means. problems: why training
    cannot start, each with its remedy.
    """

    def __init__(self):
        self.sections: dict[str, dict[str, str]] = {}
        self.missing: list[str] = []
        self.problems: list[str] = []

    def section(self, title: str) -> None:
        self.sections[title] = {}
        print(title, flush=True)

    def row(self, name: str, value: object) -> None:
        """One line of the section that was begun last, in ASCII."""
        text = in_ascii(str(value))
        self.sections[next(reversed(self.sections))][name] = text
        print(f"  {in_ascii(name):<28} {text}", flush=True)


def in_ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def size_text(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def reason(error: Exception) -> str:
    """The kind of the error and its first line, with CANN's error code where there is one."""
    text = str(error).strip()
    first = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    code = re.search(r"\b(E[A-Z0-9]\d{4}|ERR\d{5}|50\d{4})\b", text)
    first = first if len(first) <= REASON_LENGTH else first[: REASON_LENGTH - 3] + "..."
    return f"{first} ({code[1]})" if code and code[1] not in first else first
