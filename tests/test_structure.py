"""How the files of the package hang together: no circles, no name twice in a room, no long chains."""

import re
from pathlib import Path

import pytest

from tests.structure import PACKAGE, circles, imports, longest_chain, repeated_names, rooms

LONGEST_CHAIN = {"resize": 6}


@pytest.mark.parametrize("room", rooms(), ids=lambda room: room.name)
def test_a_room_has_no_import_circle_and_no_file_name_twice(room: Path) -> None:
    assert not circles(imports(room))
    if room.name != "cli":  # its files mirror the verbs
        assert not repeated_names(room)


@pytest.mark.parametrize("room", LONGEST_CHAIN)
def test_the_longest_chain_of_imports_stays_short(room: str) -> None:
    graph = imports(next(path for path in rooms() if path.name == room))
    chain = longest_chain(graph)
    assert len(chain) <= LONGEST_CHAIN[room], " -> ".join(chain)


def test_circles_and_chains_are_found() -> None:
    graph = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"a"}), "d": frozenset({"a"})}
    assert circles(graph) == [["a", "b", "c"]]
    assert longest_chain({**graph, "c": frozenset()}) == ["d", "a", "b", "c"]


def test_the_files_of_the_two_walks_are_there() -> None:
    walks = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Two walks")[2]
    named = re.findall(r"\w+/[\w/]+\.py", walks)
    assert named and not [name for name in named if not (PACKAGE / name).is_file()]
