"""Measure how the files of the package hang together: `python -m tests.structure` prints it."""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hf_warmscale"

Imports = Mapping[str, frozenset[str]]
"""For each file of a room the files of the same room that it imports, by their path in the package."""


def rooms() -> list[Path]:
    """Return the top-level folders of the package."""
    return sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


def files(room: Path) -> list[Path]:
    """Return the source files of a room; an `__init__.py` only lists names."""
    return sorted(path for path in room.rglob("*.py") if path.name != "__init__.py")


def imports(room: Path) -> Imports:
    """Return the imports inside a room, those inside functions and for type checkers too."""
    modules = {_module(path): path for path in files(room)}
    return {
        _relative(path): frozenset(
            _relative(modules[name]) for name in _imported(path) if name in modules and modules[name] != path
        )
        for path in modules.values()
    }


def circles(graph: Imports) -> list[list[str]]:
    """Return the groups of files that import one another, directly or by way of others."""
    reached = {name: _reached(name, graph) for name in graph}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def longest_chain(graph: Imports) -> list[str]:
    """Return the longest chain of files of which each imports the next. The graph must have no circles."""

    chains: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in chains:
            chains[name] = [name, *max(([], *(chain(other) for other in sorted(graph[name]))), key=len)]
        return chains[name]

    return max(([], *(chain(name) for name in graph)), key=len)


def repeated_names(room: Path) -> list[str]:
    """Return the file names that occur more than once in a room."""
    counts = Counter(path.name for path in files(room))
    return sorted(name for name, count in counts.items() if count > 1)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _reached(start: str, graph: Imports) -> set[str]:
    reached, waiting = set[str](), list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += graph[name]
    return reached


def _module(path: Path) -> str:
    return ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts))


def _relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def main() -> None:
    """Print one row a room."""
    print(f"{'room':<14}{'files':>6}{'circles':>9}{'longest chain':>15}  repeated names")
    for room in rooms():
        graph = imports(room)
        round_trips = circles(graph)
        chain = "-" if round_trips else len(longest_chain(graph))
        print(f"{room.name:<14}{len(graph):>6}{len(round_trips):>9}{chain:>15}  {', '.join(repeated_names(room))}")
        for group in round_trips:
            print(f"{'':<14}circle: {', '.join(group)}")


if __name__ == "__main__":
    main()
