"""Classes of the package pytorch_lightning are refused by name, with what to import instead."""

import sys
from types import ModuleType

import lightning as L
import pytest

from lightning_vamo import UnsupportedError, VAMOCallback, VAMOMixin, find_probes, with_vamo
from tests.support.modules import Data, Everything, trainer

REMEDY = "write `import lightning.pytorch as pl` in place of `import pytorch_lightning as pl`"


@pytest.fixture
def other(monkeypatch):
    """A package of that name, whether or not the real one is installed; its classes are as unrelated to lightning's."""
    package = ModuleType("pytorch_lightning")
    for name in ("LightningModule", "LightningDataModule", "Trainer"):
        setattr(package, name, type(name, (), {"__module__": f"pytorch_lightning.core.{name.lower()}"}))
    monkeypatch.setitem(sys.modules, "pytorch_lightning", package)
    return package


def test_a_class_with_the_mixin(other):
    with pytest.raises(UnsupportedError, match="`Mine` is Mine, which is built on") as refused:

        class Mine(VAMOMixin, other.LightningModule):
            pass

    assert REMEDY in str(refused.value)


def test_an_object(other):
    class Mine(other.LightningModule):
        pass

    with pytest.raises(UnsupportedError, match="`module` is Mine, which is built on") as refused:
        with_vamo(Mine())
    assert REMEDY in str(refused.value)


def test_a_trainer(other):
    with pytest.raises(UnsupportedError, match=r"`trainer` is pytorch_lightning\.Trainer") as refused:
        VAMOCallback(probes=1).setup(other.Trainer(), with_vamo(Everything()), "fit")
    assert REMEDY in str(refused.value)


@pytest.mark.parametrize("name", ["trainer", "model", "datamodule"])
def test_the_finder(other, name):
    given = {"trainer": trainer(), "model": Everything(), "datamodule": Data()}
    given[name] = getattr(
        other, {"trainer": "Trainer", "model": "LightningModule", "datamodule": "LightningDataModule"}[name]
    )()
    with pytest.raises(UnsupportedError, match=f"`{name}` is pytorch_lightning") as refused:
        find_probes(**given)
    assert REMEDY in str(refused.value)


def test_the_real_package():
    pl = pytest.importorskip("pytorch_lightning")
    module = type("Mine", (pl.LightningModule,), {})
    with pytest.raises(UnsupportedError, match=r"built on pytorch_lightning\.LightningModule"):
        with_vamo(module())
    with pytest.raises(UnsupportedError, match=r"`trainer` is pytorch_lightning\.Trainer"):
        VAMOCallback(probes=1).setup(pl.Trainer(accelerator="cpu", logger=False), with_vamo(Everything()), "fit")


def test_a_class_that_only_borrows_is_not_refused(other):
    class Both(L.LightningModule, other.LightningModule):
        pass

    assert isinstance(with_vamo(Both()), VAMOMixin)
