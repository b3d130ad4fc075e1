"""The rooms of the package: no import points up, none goes in a circle, and nothing grows too large to be read."""

import pytest

from tests.support import rooms


def test_every_room_has_a_place():
    assert {rooms.room_of(rooms.module_of(path)) for path in rooms.files()} == set(rooms.ORDER)


def test_no_arrow_points_up():
    assert rooms.upward() == []


def test_no_file_imports_itself_through_others():
    assert rooms.circles() == []


def test_the_report_knows_nothing_of_the_package_but_its_errors():
    targets = {target for source, target in rooms.arrows() if rooms.room_of(source) == "report"}
    assert {rooms.room_of(target) for target in targets} == {"errors"}


@pytest.mark.parametrize("room", rooms.FOLDERS)
def test_ruff_forbids_what_points_up(room):
    """`python -m tests.support.rooms --bans` writes these files."""
    assert (rooms.PACKAGE / room.replace(".", "/") / "ruff.toml").read_text() == rooms.bans(room)


@pytest.mark.parametrize(("kind", "most"), [("files", 300), ("functions", 50)])
def test_nothing_is_too_large_to_be_read(kind, most):
    counts = dict(zip(("files", "functions"), rooms.sizes(), strict=True))[kind]
    assert {name: count for name, count in counts.items() if count > most} == {}
