"""The rooms of the package, read from its imports: `make rooms` prints them, and a test fails on an arrow that points up."""

import ast
import functools
import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "lightning_vamo"

# From top to bottom: a room imports rooms below it only. A room is a folder, or a file that stands beside folders.
ORDER = [
    "",  # what the package exports
    "__main__",
    "cli",
    "help",
    "configurations",
    "finder",
    "callbacks",
    "mixin",
    "loop.checkpoint",
    "loop.run",
    "loop.step",
    "loop.gradient",
    "loop.control",
    "loop.sweep",
    "loop.plan",
    "loop.guards",
    "loop.ledger",
    "loop.observer",
    "loop.checks",
    "loop.parameters",
    "loop.compat",
    "loop",
    "core",
    "core.carried",
    "core.adaptive",
    "core.correction",
    "core.gradient",
    "core.control",
    "core.schedules",
    "core.noise",
    "core.efficiency",
    "core.probes",
    "core.directions",
    "core.directions.learned",
    "core.directions.coordinate",
    "core.directions.random",
    "core.directions.family",
    "core.directions.learner",
    "core.directions.base",
    "core.directions.slopes",
    "core.algebra",
    "core.sharding",
    "core.small",
    "core.numerics",
    "report",
    "errors",
]
# Neither of them knows the other.
STRANGERS = {("loop.gradient", "loop.control"), ("loop.control", "loop.gradient")}


FOLDERS = [
    room for room in ORDER if (room.startswith("loop.") or room == "core") and (PACKAGE / room.replace(".", "/")).is_dir()
]


LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")


def above(room):
    """The rooms that a folder must not import, each named once: by its own name, or by a folder that holds it."""
    if room == "core":
        return ["callbacks", "cli", "finder", "loop", "mixin", "report"]
    higher = [other for other in ORDER[1 : ORDER.index(room)] if other != "__main__"]
    return sorted({*higher, *(other for one, other in STRANGERS if one == room)})


def bans(room):
    """The ruff configuration of a folder: it forbids the imports that point up."""
    banned = {f"{PACKAGE.name}.{other}": f"{room}/ is below it" for other in above(room)}
    if room == "core":
        banned |= dict.fromkeys(LIGHTNING, "core/ is pure PyTorch")
    lines = [f'"{name}".msg = "{why}"' for name, why in sorted(banned.items())]
    root = "../" * (room.count(".") + 2)
    return "\n".join([f'extend = "{root}pyproject.toml"', "", "[lint.flake8-tidy-imports.banned-api]", *lines, ""])


@functools.cache
def files():
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    """The room that a module is in: the longest entry of the order that the module's name begins with."""
    parts = module.split(".") if module else []
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in ORDER), "" if not module else None)


@functools.cache
def imports(path):
    """The modules of this package that a file imports, those for type checking alone included."""
    found = set()
    known = {module_of(other) for other in files()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            module = node.module.removeprefix(PACKAGE.name).lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                found.add(inner if inner in known else module)
        elif isinstance(node, ast.Import):
            own = [alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name]
            found |= {name.removeprefix(PACKAGE.name).lstrip(".") for name in own}
    return found


def arrows():
    """Pairs of a module and one that it imports, without those within a room."""
    pairs = {(module_of(path), target) for path in files() for target in imports(path)}
    return {(source, target) for source, target in pairs if room_of(source) != room_of(target)}


def upward():
    """The arrows that the order forbids."""
    place = {room: index for index, room in enumerate(ORDER)}
    rooms = [(source, target, room_of(source), room_of(target)) for source, target in arrows()]
    return sorted(
        (source, target)
        for source, target, a, b in rooms
        if a is None or b is None or place[a] > place[b] or (a, b) in STRANGERS
    )


def circles():
    """Modules that import each other, directly or through others."""
    graph = {module_of(path): imports(path) for path in files()}
    done, path = set(), []

    def visit(module):
        if module in path:
            return [path[path.index(module) :]]
        if module in done:
            return []
        path.append(module)
        found = [circle for target in sorted(graph.get(module, ())) for circle in visit(target)]
        path.pop()
        done.add(module)
        return found

    return [circle for module in sorted(graph) for circle in visit(module)]


def sizes():
    """Lines of each file, and of each function."""
    lines, functions = {}, {}
    for path in files():
        text = path.read_text()
        name = str(path.relative_to(PACKAGE))
        lines[name] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = [part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
                if body:
                    functions[f"{name}:{node.name}"] = body[-1].end_lineno - body[0].lineno + 1
    return lines, functions


def main():
    seen = Counter((room_of(source), room_of(target)) for source, target in arrows())
    for room in ORDER:
        targets = [
            f"{target or 'lightning_vamo'} ({count})" for (source, target), count in sorted(seen.items()) if source == room
        ]
        print(f"{room or 'lightning_vamo':<28}-> {', '.join(targets) or 'nothing'}")
    lines, functions = sizes()
    print(f"\nupward arrows: {upward() or 'none'}\ncircles: {circles() or 'none'}")
    for title, counts in (("largest files", lines), ("largest functions, without their docstrings", functions)):
        print(f"{title}: " + ", ".join(f"{name} ({count})" for name, count in Counter(counts).most_common(5)))


if __name__ == "__main__":
    if "--bans" in sys.argv:
        for folder in FOLDERS:
            (PACKAGE / folder.replace(".", "/") / "ruff.toml").write_text(bans(folder))
    main()
