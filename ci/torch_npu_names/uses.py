"""Collects the names of torch_npu that source texts use, by their syntax trees.

What is found: `torch.npu.X` and `torch_npu.X`, also through an import, a variable, `self.X` or a function of the
repository that returns one; and `getattr(torch, device_type).X`, as whatever is not a literal there may be "npu". What
is not: attributes of what a call returns, such as the methods of a stream; names of a module that is a function's
argument; and names that are put together from text, other than those of the optimizers that a run can have and those
that `fused_optimizer` is called with.
"""

import ast
import inspect
import re
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.step.optimizer import OPTIMIZERS, optimizer_options

MODULE_AS_TEXT = re.compile(r"torch_npu(\.\w+)+")
BELOW = ("torch.npu.", "torch_npu.")
FUSED_OPTIMIZER = "common.step.optimizer.fused_optimizer"


@dataclass(frozen=True)
class Call:
    """The arguments of a call. complete: no * or ** hides further ones."""

    positional: int
    keywords: tuple[str, ...]
    complete: bool = True

    def problem(self, signature: inspect.Signature) -> str | None:
        """Why a function of this signature does not take the arguments, in Python's words; None when it does."""
        bind = signature.bind if self.complete else signature.bind_partial
        try:
            bind(*[None] * self.positional, **dict.fromkeys(self.keywords))
        except TypeError as error:
            return str(error)
        return None


@dataclass(frozen=True)
class Use:
    """One place where a source uses a name. imported: it is in an import, which loads the modules on the way to it."""

    name: str
    file: str
    line: int
    call: Call | None = None
    imported: bool = False


def collect(root: Path, files: Iterable[Path]) -> list[Use]:
    """Every use in these files of a repository, whose modules are named from `root`."""
    texts = {path.relative_to(root): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(files)}
    known: dict[str, str] = {}
    while True:  # until no further function is found that returns the device's module, or a name of the plugin
        before = dict(known)
        uses = [use for path, tree in texts.items() for use in _Collector(path, known).collect(tree)]
        if known == before:
            return sorted(set(uses), key=lambda use: (use.name, use.file, use.line))


class _Collector(ast.NodeVisitor):
    """Walks one file in the order of its lines; each scope maps its variables to full names, or to None."""

    def __init__(self, path: Path, known: dict[str, str]):
        """known: full name of a function -> the full name of what it returns; receives those of this file."""
        self.file, self.module, self.known = path.as_posix(), ".".join(path.with_suffix("").parts), known
        self.scopes: list[dict[str, str | None]] = [{}]  # the file's own first, the innermost last
        self.functions: list[str | None] = []  # full names of the functions around the node, None for inner ones
        self.uses: list[Use] = []

    def collect(self, tree: ast.Module) -> list[Use]:
        for node in tree.body:  # functions may be called above the line that defines them
            if isinstance(node, ast.FunctionDef):
                self.scopes[-1][node.name] = f"{self.module}.{node.name}"
        self.visit(tree)
        return self.uses

    def resolve(self, node: ast.expr) -> str | None:
        """The full name that an expression stands for, as far as the text tells."""
        if isinstance(node, ast.Name):
            return self._look_up(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and (own := self._look_up(f"{node.value.id}.{node.attr}")):
                return own
            owner = self.resolve(node.value)
            return owner and f"{owner}.{node.attr}"
        if isinstance(node, ast.IfExp):
            return _either(self.resolve(node.body), self.resolve(node.orelse))
        if isinstance(node, ast.NamedExpr):
            return self.resolve(node.value)
        return self._returned(node) if isinstance(node, ast.Call) else None

    def _returned(self, call: ast.Call) -> str | None:
        function = self.resolve(call.func)
        first, second = (*call.args, None, None)[:2]
        if isinstance(call.func, ast.Name) and call.func.id == "getattr" and second is not None:
            owner = self.resolve(first)
            if isinstance(second, ast.Constant):
                return owner and f"{owner}.{second.value}"
            return "torch.npu" if owner == "torch" else None
        if function == "importlib.import_module" and isinstance(first, ast.Constant):
            return first.value
        return self.known.get(function) if function else None

    def _look_up(self, variable: str) -> str | None:
        return next((scope[variable] for scope in reversed(self.scopes) if variable in scope), None)

    def _record(self, node: ast.AST, name: str | None, call: Call | None = None, imported: bool = False) -> None:
        if name and name.startswith(BELOW):
            self.uses.append(Use(name, self.file, node.lineno, call, imported))

    def _bind(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for each, own in zip(target.elts, value.elts, strict=False):
                self._bind(each, own)
        elif isinstance(target, ast.Name):
            self.scopes[-1][target.id] = value and self.resolve(value)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            own = self.scopes[-2 if len(self.scopes) > 1 else -1]  # that of the class
            own[f"self.{target.attr}"] = _either(own.get(f"self.{target.attr}"), value and self.resolve(value))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            first = alias.name.split(".")[0]
            self.scopes[-1][alias.asname or first] = alias.name if alias.asname else first
            self._record(node, alias.name, imported=True)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            self.scopes[-1][alias.asname or alias.name] = name
            self._record(node, name, imported=True)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._bind(node.target, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self._bind(node.target, node.value)

    def visit_If(self, node: ast.If) -> None:
        """After the branches, a variable is what one of them makes it."""
        self.visit(node.test)
        before = dict(self.scopes[-1])
        for each in node.body:
            self.visit(each)
        after, self.scopes[-1] = self.scopes[-1], before
        for each in node.orelse:
            self.visit(each)
        other = self.scopes[-1]
        other.update({name: _either(after.get(name), other.get(name)) for name in {*after, *other}})

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.scopes[-1].setdefault(node.id, None)  # it hides one of the same name outside

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._record(node, self.resolve(node))
        self._visit_owner(node)

    def _visit_owner(self, node: ast.expr) -> None:
        """Go on below the longest name: its parts are no uses of their own."""
        while isinstance(node, ast.Attribute):
            node = node.value
        self.visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = self.resolve(node.func)
        keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
        complete = len(keywords) == len(node.keywords) and not any(isinstance(arg, ast.Starred) for arg in node.args)
        positional = sum(not isinstance(arg, ast.Starred) for arg in node.args)
        if (kind := self._chosen_optimizer(node, function)) is not None:
            given = tuple(name for name in keywords if name not in ("kind", "parameters", "world", "source"))
            name = f"torch_npu.optim.NpuFused{kind}"
            self._record(node, name, Call(1, given, complete), imported=True)
        self._record(node.func, function, Call(positional, keywords, complete))
        is_import = function == "importlib.import_module"
        if is_import or (isinstance(node.func, ast.Name) and node.func.id == "getattr"):
            self._record(node, self._returned(node), imported=is_import)
        self._visit_owner(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(argument)

    def _chosen_optimizer(self, call: ast.Call, function: str | None) -> str | None:
        """X of a call `fused_optimizer(torch.optim.X, ...)`."""
        return self._torch_optimizer(call.args[0]) if call.args and function == FUSED_OPTIMIZER else None

    def _torch_optimizer(self, node: ast.expr) -> str | None:
        kind = self.resolve(node) or ""
        return kind.removeprefix("torch.optim.") if kind.startswith("torch.optim.") else None

    def visit_Dict(self, node: ast.Dict) -> None:
        """Names of optimizers -> torch.optim.X: with what --optimizer gives them."""
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value in OPTIMIZERS and (kind := self._torch_optimizer(value)):
                args = Namespace(optimizer=key.value, lr=0.1, weight_decay=0.0, momentum=0.0)
                given = Call(1, tuple(optimizer_options(args)))
                self._record(value, f"torch_npu.optim.NpuFused{kind}", given, imported=True)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and MODULE_AS_TEXT.fullmatch(node.value):
            self._record(node, node.value, imported=True)

    def visit_Return(self, node: ast.Return) -> None:
        self.generic_visit(node)
        function = self.functions[-1]
        if function and node.value and (name := self.resolve(node.value)):
            self.known.setdefault(function, name)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scopes[-1][node.name] = None
        for each in (*node.bases, *node.keywords, *node.decorator_list):
            self.visit(each)
        self._visit_inside({}, node.body, None)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        full_name = f"{self.module}.{node.name}" if len(self.scopes) == 1 else None
        self.scopes[-1][node.name] = full_name
        for each in (*node.decorator_list, node.args, *filter(None, [node.returns])):
            self.visit(each)
        self._visit_inside(_parameters(node.args), node.body, full_name)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        self._visit_inside(_parameters(node.args), [node.body], None)

    def _visit_inside(self, variables: dict[str, None], body: list, function: str | None) -> None:
        self.scopes.append(variables)
        self.functions.append(function)
        for each in body:
            self.visit(each)
        self.scopes.pop()
        self.functions.pop()


def _either(one: str | None, other: str | None) -> str | None:
    """Of the two names that something may have, the one that is looked for."""
    return next((name for name in (one, other) if name and f"{name}.".startswith(BELOW)), one or other)


def _parameters(arguments: ast.arguments) -> dict[str, None]:
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    return {each.arg: None for each in every if each}
