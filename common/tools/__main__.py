"""The commands of this package, one in a line: python3 -m common.tools"""

import ast
from pathlib import Path

from common.terminal import lasting_output

TOOLS = Path(__file__).resolve().parent


def commands() -> dict[str, str]:
    """name -> what it is for: the first line of the docstring of each module here that can be started.

    The texts are read and nothing is imported: torch alone takes seconds.
    """
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(TOOLS.glob("[!_]*.py"))}
    return {name: ast.get_docstring(tree).splitlines()[0] for name, tree in trees.items() if _is_command(tree)}


def _is_command(tree: ast.Module) -> bool:
    """Whether it ends with `if __name__ == "__main__":`."""
    last = tree.body[-1]
    return isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"


def main() -> None:
    print("python3 -m common.tools.NAME in the root, or python3 ../common/tools/NAME.py in a folder; NAME is one of")
    for name, purpose in commands().items():
        print(f"{name:<12} {purpose}")


if __name__ == "__main__":
    with lasting_output():
        main()
