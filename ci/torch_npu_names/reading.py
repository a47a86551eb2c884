"""Finds names in the Python files of an unpacked torch_npu, which is read and never run."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from ci.torch_npu_names.answers import Answer, judge
from ci.torch_npu_names.uses import Use

COMPILED = "torch_npu._C"  # a module of binaries, with modules of its own below
ATTRIBUTE_HOOKS = ("__getattr__", "__setattr__")


@dataclass(frozen=True)
class Found:
    """What a name stands for. where: file:line below torch_npu/. node: its definition, None for other values.

    module: the module that it is, or is defined in. instance: it is an object of the class `node`.
    """

    where: str
    module: str
    node: ast.AST | None = None
    instance: bool = False


class Sources:
    """The files of one torch_npu. Modules count whether or not the plugin imports them by itself."""

    def __init__(self, root: Path):
        """root: the folder that holds torch_npu/."""
        self.root = root

    def answer(self, name: str, uses: list[Use]) -> Answer:
        """Where the name is found, and whether what is found takes the arguments of the calls."""
        found = self.find(name)
        return judge(found.where if found else None, lambda: found and self._signature(found), uses)

    def find(self, name: str) -> Found | None:
        """What a dotted name stands for; torch.npu is the module torch_npu.npu."""
        first, *rest = re.sub(r"^torch\.npu\.", "torch_npu.npu.", name).split(".")
        found = self._module(first)
        for part in rest:
            found = found and self._member(found, part, frozenset())
        return found

    def _file(self, module: str) -> Path | None:
        path = self.root.joinpath(*module.split("."))
        return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)

    @cache  # noqa: B019  the object lives as long as the check
    def _module(self, module: str) -> Found | None:
        if file := self._file(module):
            return Found(self._place(file), module, ast.parse(file.read_text(encoding="utf-8")))
        if module == COMPILED:
            return Found("_C", module) if self._binaries else None
        return self._in_binary(module) if module.startswith(f"{COMPILED}.") else None

    def _place(self, file: Path, node: ast.AST | None = None) -> str:
        path = file.relative_to(self.root / "torch_npu").as_posix()
        return f"{path}:{node.lineno}" if node else path

    def _member(self, owner: Found, name: str, asked: frozenset[tuple[str, str]]) -> Found | None:
        if isinstance(owner.node, ast.Module):
            return self._of_module(owner.module, name, asked)
        if isinstance(owner.node, ast.ClassDef):
            return self._of_class(owner, name)
        return self._in_binary(f"{owner.module}.{name}") if owner.module.startswith(COMPILED) else None

    def _of_module(self, module: str, name: str, asked: frozenset[tuple[str, str]]) -> Found | None:
        """asked: (module, name) that led here, which go round in circles where a package imports its own modules."""
        if (module, name) in asked:
            return self._module(f"{module}.{name}")
        asked |= {(module, name)}
        found = None
        for statement in _top_level(self._module(module).node):
            found = self._bound(module, statement, name, asked) or found  # the last one wins
        return found or self._module(f"{module}.{name}")

    def _bound(self, module: str, statement: ast.stmt, name: str, asked: frozenset) -> Found | None:
        """What the statement binds to the name, if it does."""
        here = self._file(module)
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == name:
            return Found(self._place(here, statement), module, statement)
        if isinstance(statement, ast.ImportFrom):
            source = self._absolute(module, statement)
            for alias in statement.names:
                if name == (alias.asname or alias.name) or (alias.name == "*" and self._exports(source, name)):
                    if source.split(".")[0] != "torch_npu":
                        return Found(self._place(here, statement), source)  # of torch, say: it is not followed
                    owner = self._module(source)
                    return owner and self._member(owner, name if alias.name == "*" else alias.name, asked)
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if name == (alias.asname or alias.name.split(".")[0]):
                    return self._module(alias.name if alias.asname else name)
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return self._value(module, statement, asked)
        return None

    def _value(self, module: str, statement: ast.Assign | ast.AnnAssign, asked: frozenset) -> Found:
        """An assigned value: an object of a class, another name for something, or just a value."""
        where, value = self._place(self._file(module), statement), statement.value
        if isinstance(value, ast.Call) and (kind := self._expression(module, value.func, asked)):
            if isinstance(kind.node, ast.ClassDef):
                return Found(where, kind.module, kind.node, instance=True)
        elif known := self._expression(module, value, asked):
            return Found(where, known.module, known.node, known.instance)
        return Found(where, module)

    def _expression(self, module: str, node: ast.expr, asked: frozenset) -> Found | None:
        if isinstance(node, ast.Name):
            return self._of_module(module, node.id, asked)
        if isinstance(node, ast.Attribute) and (owner := self._expression(module, node.value, asked)):
            return self._member(owner, node.attr, asked)
        return None

    def _absolute(self, module: str, statement: ast.ImportFrom) -> str:
        """The full name of the module that is imported from."""
        if not statement.level:
            return statement.module
        parts = module.split(".")
        is_package = self._file(module).name == "__init__.py"
        base = parts[: len(parts) - statement.level + is_package]
        return ".".join([*base, *filter(None, [statement.module])])

    def _exports(self, module: str, name: str) -> bool:
        """Whether `from module import *` brings the name: __all__ has it, or without that it begins with no _."""
        found = self._module(module)
        if found is None or not isinstance(found.node, ast.Module):
            return False
        for statement in _top_level(found.node):
            if isinstance(statement, ast.Assign) and any(ast.unparse(each) == "__all__" for each in statement.targets):
                return name in texts(statement.value)
        return not name.startswith("_")

    def _of_class(self, owner: Found, name: str) -> Found | None:
        """A member of a class or an object of it; what hooks take counts only if they compare with its name."""
        file = self._file(owner.module)
        for statement in owner.node.body:
            names = {getattr(statement, "name", None)}
            if isinstance(statement, ast.Assign | ast.AnnAssign):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                names = {target.id for target in targets if isinstance(target, ast.Name)}
            if name in names:
                return Found(self._place(file, statement), owner.module)
        for node in ast.walk(owner.node):
            is_own = isinstance(node, ast.Attribute) and ast.unparse(node) == f"self.{name}"
            if is_own and isinstance(node.ctx, ast.Store) and owner.instance:
                return Found(self._place(file, node), owner.module)
            if getattr(node, "name", None) in ATTRIBUTE_HOOKS and name in texts(node):
                return Found(self._place(file, node), owner.module)
        for base in owner.node.bases:
            kind = self._expression(owner.module, base, frozenset())
            if kind and (found := self._member(kind, name, frozenset())):
                return found
        return None

    @cached_property
    def _binaries(self) -> dict[str, bytes]:
        files = [*self.root.glob("torch_npu/_C*.so"), *sorted(self.root.glob("torch_npu/lib/*.so"))]
        return {self._place(file): file.read_bytes() for file in files}

    def _in_binary(self, name: str) -> Found | None:
        """A full name of the compiled module, or of one below it: its last part is there as a text.

        A text may be the end of a longer one, as linkers store them: a short name is found all too easily.
        """
        text = name.rpartition(".")[2].encode() + b"\0"
        file = next((file for file, content in self._binaries.items() if text in content), None)
        return file and Found(f"{file} (text)", name)

    def _signature(self, found: Found) -> inspect.Signature | None:
        """Of a function, or of the class whose object a call makes; None where the files do not tell."""
        if isinstance(found.node, ast.FunctionDef):
            return _signature(found.node.args)
        if not isinstance(found.node, ast.ClassDef) or found.instance:
            return None
        methods = {each.name: each for each in found.node.body if isinstance(each, ast.FunctionDef)}
        maker = methods.get("__init__") or methods.get("__new__")
        return maker and _signature(maker.args, bound=True)


def _top_level(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported, out of their if, try and with."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _top_level(node)
        elif isinstance(node, ast.stmt):
            yield node


def texts(node: ast.AST) -> set[str]:
    """The strings in a syntax tree."""
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def _signature(arguments: ast.arguments, bound: bool = False) -> inspect.Signature:
    """The signature that a definition has; bound: without its first parameter."""
    make = inspect.Parameter
    by_place = [
        *((each, make.POSITIONAL_ONLY) for each in arguments.posonlyargs),
        *((each, make.POSITIONAL_OR_KEYWORD) for each in arguments.args),
    ]
    required = len(by_place) - len(arguments.defaults)
    parameters = [
        make(each.arg, kind, default=make.empty if index < required else None)
        for index, (each, kind) in enumerate(by_place)
    ]
    parameters = parameters[1:] if bound else parameters
    if arguments.vararg:
        parameters.append(make(arguments.vararg.arg, make.VAR_POSITIONAL))
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(make(each.arg, make.KEYWORD_ONLY, default=None if default else make.empty))
    if arguments.kwarg:
        parameters.append(make(arguments.kwarg.arg, make.VAR_KEYWORD))
    return inspect.Signature(parameters)
