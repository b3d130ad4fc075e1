"""The check of the documentation's build that each public name has a description."""

import importlib.util
from pathlib import Path

import lightning_vamo

FILE = Path(__file__).parents[2] / "docs" / "_ext" / "public_names.py"


def extension():
    spec = importlib.util.spec_from_file_location("public_names", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_name_without_a_description_is_told():
    documented = {f"lightning_vamo.{name}" for name in lightning_vamo.__all__} - {"lightning_vamo.with_vamo"}
    assert list(extension().undocumented(["lightning_vamo"], documented)) == ["lightning_vamo.with_vamo"]


def test_the_name_of_the_defining_module_counts():
    documented = {f"lightning_vamo.{name}" for name in lightning_vamo.__all__} - {"lightning_vamo.with_vamo"}
    assert not list(extension().undocumented(["lightning_vamo"], {*documented, "lightning_vamo.mixin.with_vamo"}))


def test_nothing_documented():
    names = [name for name in lightning_vamo.__all__ if not name.startswith("__")]
    assert len(list(extension().undocumented(["lightning_vamo"], set()))) == len(names)
