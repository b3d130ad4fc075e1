"""Two processes bound the rows of enormous gradients alike: ranks never differ by a bit, and their parts make up the table."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_vamo import VAMOMixin
from lightning_vamo.core.directions import OrthonormalDirections
from tests.support import ranks
from tests.support.watched import Watched


class Line(VAMOMixin, L.LightningModule):
    """Least squares, by steps that do not depend on how large a gradient is."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]).squeeze(1) - batch[1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class SaveTables(L.Callback):
    """Keeps each rank's last table: its centred rows, this rank's part of them, and the rows as they were measured."""

    def __init__(self, folder, callback):
        self.folder = folder
        self.callback = callback

    def on_train_end(self, fit, module):
        snapshot = self.callback.snapshots[-1][2]
        table = {"rows": torch.stack([snapshot.correction.control.correction(key) for key in range(24)])}
        if snapshot.sweep is not None:
            table["own"] = torch.stack([snapshot.correction.own.correction(key) for key in range(24)])
            table["deltas"], table["parts"] = snapshot.sweep.deltas, snapshot.sweep.own
        torch.save(table, self.folder / f"table-{fit.global_rank}.pt")


def tables(folder, control, devices):
    """Batches of 8 samples, of which one sample of the second rank is absurd."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(192, 4, generator=generator, dtype=torch.float64)
    targets = inputs.sum(dim=1) + torch.randn(192, generator=generator, dtype=torch.float64)
    targets[101] = 1e5
    arguments = {"directions": OrthonormalDirections(), "alpha": "adaptive", "difference": "central", "mu": 1e-2, "seed": 1}
    callback = Watched(probes=3, control=control, **arguments)
    options = {"precision": "64-true", "use_distributed_sampler": False, "max_epochs": 3, "batch_size": 8 // devices}
    saver = SaveTables(folder, callback)
    data = TensorDataset(inputs, targets)
    results = ranks.run(Line(), folder, data, devices=devices, callback=callback, behind=saver, **options)
    return results, [torch.load(folder / f"table-{rank}.pt", weights_only=True) for rank in range(devices)]


@pytest.mark.parametrize("control", ["replay", "carry"])
def test_ranks_bound_their_tables_alike(control, tmp_path):
    [alone], [single] = tables(tmp_path / "one", control, 1)
    (first, second), (one, two) = tables(tmp_path / "two", control, 2)
    assert torch.equal(one["rows"], two["rows"])
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])
    assert first["metrics"]["vamo/variance_removed"] == second["metrics"]["vamo/variance_removed"]
    for name, weight in alone["state"].items():
        assert torch.allclose(first["state"][name], weight, rtol=1e-6), name
    assert torch.allclose(one["rows"], single["rows"], rtol=1e-5, atol=1e-5)
    assert one["rows"].sum(dim=0).abs().max() < 1e-9
    assert 1 < one["rows"].abs().max() < 100
    if control == "replay":
        assert one["deltas"].abs().max() > 1e4
        assert not torch.allclose(one["parts"], two["parts"])
        # A rank that withholds its part of a row, as of a batch that was not swept, withholds nothing enormous.
        assert max(part["own"].abs().max() for part in (one, two)) < 100
        assert torch.allclose((one["own"] + two["own"]) / 2, one["rows"], rtol=1e-9, atol=1e-9)
