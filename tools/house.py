"""Measures the shape of the code and exits with 1 where a bound is broken: python tools/house.py [--verbose]

All is read from the syntax trees of `src/rfdetr_hf`; nothing is imported.

* trainer attributes: names after a variable that is called `trainer`, is annotated as `RFDETRTrainer` or is assigned
  from a call of it, in other files than the trainer's own; read and written ones, each name once.
* handed the trainer: files with a parameter that is called `trainer` or annotated so, and files whose functions get the
  trainer's bare `self` as an argument.
* cycles: strongly connected modules, and folders; imports for type checkers, inside of functions and by
  `import_module` count. A folder is the first part of a module's path, a module at the top its own folder.
* tables by task: displays (dict, list, tuple, set) of two or more names of tasks and nothing else, outside of tasks.py.
* depth: calls on the shortest way from `train` to `training_step` within the trainer's file.
* short private functions: `_name`s of at most five lines with one reference, by name in their module or as an
  attribute anywhere.
* lines: functions from `def` to their end without their docstring; files; and code lines, which are neither blank,
  comment nor docstring.
* tests: modules with a function in them whose tests are not in `tests/<folder>/test_<module>.py`, beside those of
  `NO_TEST_FILE`; and rows of it that nothing needs any more.
* directions: which folder imports what it may not know; the command line and the examples import public names only.
"""

import argparse
import ast
import builtins
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "rfdetr_hf"
TRAINER_FILE, TRAINER = "training/trainer.py", "RFDETRTrainer"
# A budget: raise it in a commit that says what the lines are for.
CODE_LINES = 30_000
LONGEST_FUNCTION, LONGEST_FILE, SHORT = 60, 600, 5
TASK_NAMES = {"detection", "segmentation", "keypoints"}
# Modules that need no test file of their name, with the reason.
NO_TEST_FILE = {
    "arguments/convert.py": "fields without a rule; the help of all verbs is tested in tests/arguments/test_help.py",
    "arguments/status.py": "as above",
    "training/checkpoint/zero.py": "needs DeepSpeed's processes: tests/distributed/test_topologies.py",
}

# What each folder may import; leaves may be imported by all. "" is the package itself, whose list imports the rest.
LEAVES = {"tasks", "drawing", "options", "choices", "bit_depth", "decoding", "values", "cores"}
MAY_IMPORT = {
    "tasks": set(),
    "drawing": set(),
    "options": set(),
    "choices": set(),
    "arguments": {"models", "data"},
    "bit_depth": set(),
    "cores": set(),
    "values": set(),
    "decoding": set(),
    "hub": {"tasks"},
    "losses": {"tasks"},
    "models": {"losses"},
    "data": set(),
    "evaluation": {"data"},
    "inference": {"arguments", "models", "data", "evaluation"},
    "export": {"models"},
    "training": {"arguments", "models", "losses", "data", "evaluation", "hub"},
    "cli": {""},
    "": {"arguments", "models", "losses", "data", "evaluation", "inference", "export", "training", "hub"},
}


class Measure(NamedTuple):
    """A figure with its bound, and what makes it up."""

    name: str
    value: int
    bound: int
    found: list[str]


class Module(NamedTuple):
    """A source file: dotted name below the package ("" for its `__init__`), path from the package, syntax tree."""

    name: str
    path: str
    tree: ast.Module
    text: str

    @property
    def folder(self) -> str:
        """The first part of its path."""
        return self.name.split(".")[0]


def read(folder: Path) -> dict[str, Module]:
    """The modules of a package by name."""
    modules = {}
    for file in sorted(folder.rglob("*.py")):
        path, text = file.relative_to(folder), file.read_text(encoding="utf-8")
        name = ".".join(path.with_suffix("").parts).removesuffix("__init__").rstrip(".")
        modules[name] = Module(name, path.as_posix(), ast.parse(text), text)
    return modules


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods."""
    yield from (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def docstring_lines(node: ast.AST) -> set[int]:
    """The lines of the docstring of a module, class or function."""
    body = getattr(node, "body", None)
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and body:
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return set()


def code_lines(module: Module) -> int:
    """Lines that hold code."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        lines -= docstring_lines(node)
    return len(lines)


def imports(module: Module, modules: dict[str, Module]) -> set[str]:
    """The modules of the package that a module imports, wherever in the file."""
    package = module.name.split(".") if module.path.endswith("__init__.py") else module.name.split(".")[:-1]
    package = [part for part in package if part]
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {n.removeprefix(PACKAGE).lstrip(".") for n in names if n.split(".")[0] == PACKAGE}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parts = [*base, *(node.module or "").split(".")] if node.module else base
            if not node.level and parts[0] != PACKAGE:
                continue
            parts = parts if node.level else parts[1:]
            for alias in node.names:
                inner = ".".join([*parts, alias.name])
                found.add(inner if inner in modules else ".".join(parts))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            found |= _imported_by_name(module, node.args[0], modules)
    return {name for name in found if name in modules and name != module.name}


def _imported_by_name(module: Module, argument: ast.expr, modules: dict[str, Module]) -> set[str]:
    """What `import_module` can import: its constant, or its constant beginning with any text of the file behind it."""
    if isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
        start = str(argument.values[0].value)
        texts = {n.value for n in ast.walk(module.tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        names = {start + text for text in texts if text}
    else:
        names = {argument.value} if isinstance(argument, ast.Constant) else set()
    return {str(name).removeprefix(f"{PACKAGE}.") for name in names} & set(modules)


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for following in edges.get(stack.pop(), ()):
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
        return seen

    reach = {node: reached(node) for node in edges}
    groups = {tuple(sorted(other for other in reach[node] if node in reach.get(other, ()))) for node in edges
              if node in reach[node]}  # fmt: skip
    return [list(group) for group in sorted(groups)]


def trainer_names(module: Module) -> set[str]:
    """The variables of a module that hold the trainer."""
    names = {"trainer"}
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            target = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
            if TRAINER in ast.unparse(node.annotation) and "Arguments" not in ast.unparse(node.annotation):
                names.add(target)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            if ast.unparse(node.value.func).split(".")[-1] == TRAINER:
                names |= {ast.unparse(target) for target in node.targets}
    return names


def trainer_measures(modules: dict[str, Module]) -> Iterator[Measure]:
    """Who knows the trainer from inside."""
    read_names: dict[str, set[str]] = {}
    written, handed = [], set()
    for module in modules.values():
        if module.path == TRAINER_FILE:
            handed |= _given_self(module)
            continue
        names = trainer_names(module)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in names | {"self.trainer"}:
                where = f"{module.path}:{node.lineno} {node.attr}"
                if isinstance(node.ctx, ast.Load):
                    read_names.setdefault(node.attr, set()).add(where)
                else:
                    written.append(where)
            if isinstance(node, ast.arg) and node.arg in names:
                handed.add(f"{module.path}:{node.lineno}")
    private = [where for name, places in read_names.items() if name.startswith("_") for where in sorted(places)]
    yield Measure("private trainer attributes read elsewhere", len(private), 0, private)
    yield Measure("trainer attributes read elsewhere", len(read_names), 5,
                  [where for places in read_names.values() for where in sorted(places)])  # fmt: skip
    yield Measure("trainer attributes written elsewhere", len(written), 0, written)
    yield Measure("places that are handed the trainer", len(handed), 0, sorted(handed))


def _given_self(module: Module) -> set[str]:
    """Calls in the trainer's file that pass its bare `self` on."""
    found = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) not in dir(builtins):
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(value, ast.Name) and value.id == "self" for value in values):
                found.add(f"{module.path}:{node.lineno} {ast.unparse(node.func)}(self)")
    return found


def import_measures(modules: dict[str, Module]) -> Iterator[Measure]:
    """Cycles and directions."""
    edges = {name: imports(module, modules) for name, module in modules.items()}
    between: dict[str, set[str]] = {}
    for name, targets in edges.items():
        folder = modules[name].folder
        between.setdefault(folder, set()).update({modules[t].folder for t in targets} - {folder})
    for name, graph in (("modules", edges), ("folders", between)):
        found = [" <-> ".join(group) for group in cycles(graph)]
        yield Measure(f"import cycles of {name}", len(found), 0, found)
    wrong = []
    for name, targets in edges.items():
        folder = modules[name].folder
        for target in sorted(targets):
            of = modules[target].folder
            allowed = MAY_IMPORT.get(folder, set()) | (LEAVES if folder != "cli" else set()) | {folder}
            if of not in allowed:
                wrong.append(f"{modules[name].path} imports {target or PACKAGE}")
    yield Measure("imports against the directions", len(wrong), 0, wrong)


def example_measure(root: Path) -> Measure:
    """Imports of examples from below the top of the package."""
    wrong = []
    for file in sorted((root / "examples").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith(f"{PACKAGE}."):
                wrong.append(f"examples/{file.name}:{node.lineno} {module}")
    return Measure("imports of examples below the top", len(wrong), 0, wrong)


def task_measure(modules: dict[str, Module]) -> Measure:
    """Tables by task that stand beside the one in tasks.py."""
    found = []
    for module in modules.values():
        for node in ast.walk(module.tree) if module.name != "tasks" else ():
            parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
            names = {part.value if isinstance(part, ast.Constant) else None for part in parts}
            if len(names) > 1 and names <= TASK_NAMES:
                found.append(f"{module.path}:{getattr(node, 'lineno', 0)} {', '.join(sorted(names))}")
    return Measure("tables by task outside tasks.py", len(found), 0, found)


def test_measure(root: Path, modules: dict[str, Module]) -> Measure:
    """Modules whose tests a stranger would not find by name."""
    found = []
    for module in modules.values():
        path = Path(module.path)
        has_rules = path.name != "__init__.py" and any(functions(module.tree))
        has_tests = (root / "tests" / path.parent / f"test_{path.name}").is_file()
        if (has_rules and not has_tests) != (module.path in NO_TEST_FILE):
            found.append(module.path)
    return Measure("modules without a test file of their name", len(found), 0, found)


def depth_measure(modules: dict[str, Module]) -> Measure:
    """How far the step is from `train`."""
    module = next(module for module in modules.values() if module.path == TRAINER_FILE)
    uses: dict[str, set[str]] = {}
    for function in functions(module.tree):
        names = {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)}
        uses[function.name] = names | {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
    ways: list[list[str]] = [["train"]]
    seen = {"train"}
    while ways:
        way = ways.pop(0)
        if way[-1] == "training_step":
            return Measure("calls from train to training_step", len(way) - 1, 3, [" -> ".join(way)])
        for name in sorted(uses.get(way[-1], set()) & set(uses) - seen):
            seen.add(name)
            ways.append([*way, name])
    return Measure("calls from train to training_step", 99, 3, ["training_step is not reached"])


def function_measures(modules: dict[str, Module], bound: int) -> Iterator[Measure]:
    """Sizes, and private functions that hide a thought."""
    attributes: Counter[str] = Counter()
    for module in modules.values():
        attributes.update(node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute))
    long, short = [], []
    for module in modules.values():
        names = Counter(node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name))
        for function in functions(module.tree):
            length = (function.end_lineno or function.lineno) - function.lineno + 1 - len(docstring_lines(function))
            where = f"{module.path}:{function.lineno} {function.name}"
            if length > LONGEST_FUNCTION:
                long.append(f"{where}, {length} lines")
            is_private = function.name.startswith("_") and not function.name.endswith("__")
            references = names[function.name] + attributes[function.name]
            if is_private and length <= SHORT and references == 1:
                short.append(where)
    large = [m.path for m in modules.values() if len(m.text.splitlines()) > LONGEST_FILE]
    lines = {module.path: code_lines(module) for module in modules.values()}
    yield Measure("short private functions with one caller", len(short), 29, short)
    yield Measure(f"functions over {LONGEST_FUNCTION} lines", len(long), 0, long)
    yield Measure(f"files over {LONGEST_FILE} lines", len(large), 0, large)
    folders: Counter[str] = Counter()
    for path, count in lines.items():
        folders[path.split("/")[0]] += count
    yield Measure("code lines", sum(lines.values()), bound, [f"{n} {name}" for name, n in folders.most_common()])


def measure(root: Path = ROOT, code_lines_bound: int = CODE_LINES) -> list[Measure]:
    """All measures of a checkout."""
    modules = read(root / "src" / PACKAGE)
    return [
        *trainer_measures(modules),
        *import_measures(modules),
        example_measure(root),
        task_measure(modules),
        test_measure(root, modules),
        depth_measure(modules),
        *function_measures(modules, code_lines_bound),
    ]


def main(argv: list[str]) -> int:
    """Print the measures; returns 1 where a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout")
    parser.add_argument("--code-lines", type=int, default=CODE_LINES, help="bound of the lines of code")
    parser.add_argument("--verbose", action="store_true", help="what makes up each figure, also where it is in bounds")
    args = parser.parse_args(argv)
    measures = measure(args.root, args.code_lines)
    for each in measures:
        broken = each.value > each.bound
        print(f"{'BROKEN' if broken else 'ok':<7}{each.value:>6} <= {each.bound:<6} {each.name}")
        if broken or args.verbose:
            print("".join(f"{'':>25}{line}\n" for line in each.found), end="")
    return int(any(each.value > each.bound for each in measures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
