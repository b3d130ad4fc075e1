"""Each thing that VAMO cannot train is refused with one sentence that says what to do, and nothing is changed."""

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_vamo import (
    InvalidArgumentError,
    MeZOCallback,
    Replay,
    SVRGCallback,
    UnsupportedError,
    VAMOCallback,
    VAMOMixin,
    find_probes,
    with_vamo,
)
from lightning_vamo.core.directions import (
    CoordinateDirections,
    GradientSubspaceDirections,
    OrthonormalDirections,
    SphereDirections,
)
from lightning_vamo.loop.checks import check_strategy
from tests.support.modules import Everything, Indexed, VAMOEverything, loaders, trainer


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 2)

    def training_step(self, batch, batch_idx):
        return self.net(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Vamo(VAMOMixin, Linear):
    pass


def fit(module, data=None, callback=None, **options):
    callbacks = [callback or VAMOCallback(probes=1)]
    weights = [p.clone() for p in module.parameters()]
    try:
        data = DataLoader(Indexed(8), batch_size=2) if data is None else data
        trainer(callbacks=callbacks, max_epochs=1, **options).fit(module, data)
    finally:
        assert all(torch.equal(p, w) for p, w in zip(module.parameters(), weights, strict=True))
        assert "run" not in vars(module.trainer.fit_loop.epoch_loop.automatic_optimization)


ARGUMENTS = {
    "probes": [-1, 1.5, "4", True, None],
    "mu": [0, -1.0, float("nan"), float("inf"), "big", True],
    "alpha": [-0.1, float("nan"), float("inf"), "best", "big", True],
    "difference": ["backward", None],
    "control": ["sweep", None, 1, Replay],
    "seed": [1.5, "x", True],
    "directions": [OrthonormalDirections, "sphere"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ARGUMENTS.items() for value in values])
def test_arguments(name, value):
    with pytest.raises(InvalidArgumentError, match=f"`{name}") as error:
        VAMOCallback(**{name: value})
    assert repr(value) in str(error.value) or "GradientSubspaceDirections()" in str(error.value)


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_epochs_between_snapshots(value):
    with pytest.raises(InvalidArgumentError, match=f"`every_n_epochs` must be a whole number >= 1, got {value!r}"):
        Replay(every_n_epochs=value)


def test_callback_without_mixin():
    with pytest.raises(UnsupportedError, match=r"class VAMOLinear\(VAMOMixin, Linear\)"):
        fit(Linear())


def test_mixin_without_callback():
    with pytest.raises(UnsupportedError, match=r"add a callback, as in Trainer\(callbacks=\[VAMOCallback"):
        trainer().fit(Vamo(), DataLoader(Indexed(4)))


def test_mixin_without_callback_can_be_evaluated():
    module = VAMOEverything()
    results = trainer().validate(module, loaders()[1], verbose=False)
    assert results == trainer().validate(with_vamo(module), loaders()[1], verbose=False)


def test_two_callbacks_of_one_class():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `VAMOCallback`"):
        trainer(callbacks=[VAMOCallback(), VAMOCallback()])


def test_two_callbacks_of_two_classes():
    class Another(VAMOCallback):
        pass

    with pytest.raises(UnsupportedError, match=r"2 callbacks that change gradients, VAMOCallback, Another: keep one"):
        trainer(callbacks=[VAMOCallback(), Another()]).fit(Vamo(), DataLoader(Indexed(4)))


def test_module_that_optimizes_by_hand():
    module = Vamo()
    module.automatic_optimization = False
    with pytest.raises(UnsupportedError, match=r"automatic_optimization=False .* return the loss"):
        fit(module)


def test_several_optimizers():
    class Two(Vamo):
        def configure_optimizers(self):
            return [torch.optim.SGD([p], lr=0.1) for p in self.parameters()]

    with pytest.raises(UnsupportedError, match=r"more than one optimizer.*single optimizer"):
        fit(Two())


def test_lbfgs():
    class Quasi(Vamo):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(UnsupportedError, match="LBFGS evaluates its closure several times"):
        fit(Quasi())


def test_an_optimizer_that_evaluates_its_closure_twice():
    class Twice(torch.optim.SGD):
        def step(self, closure):
            closure()
            return super().step(closure)

    class Sharp(Vamo):
        def configure_optimizers(self):
            return Twice(self.parameters(), lr=0.1)

    with pytest.raises(UnsupportedError, match="Twice evaluates its closure more than once per step"):
        fit(Sharp())


def test_an_optimizer_step_without_closure():
    class Forgetful(Vamo):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step()

    with pytest.raises(UnsupportedError, match="did not call its closure"):
        fit(Forgetful())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(4, 1))


class NoLength:
    def __iter__(self):
        yield from [[0, 1], [2, 3]]


DATA = {
    "iterable dataset": (lambda: DataLoader(Stream(), batch_size=2), "Stream, an IterableDataset"),
    "no batching": (lambda: DataLoader(Indexed(4), batch_size=None), "batch_size=None"),
    "not a loader": (NoLength, "is a NoLength.*pass a torch.utils.data.DataLoader"),
    "out of order": (lambda: DataLoader(Indexed(4), num_workers=1, in_order=False), "in_order=True"),
    "no length": (lambda: DataLoader(Indexed(4), batch_sampler=NoLength()), "limit_train_batches"),
}


@pytest.mark.parametrize(("data", "message"), DATA.values(), ids=DATA)
def test_data_without_a_plan(data, message):
    with pytest.raises(UnsupportedError, match=message) as error:
        fit(Vamo(), data(), VAMOCallback(probes=1, control="replay"))
    assert "probes=0" in str(error.value)
    assert "control='recompute'" in str(error.value)


@pytest.mark.parametrize("data", [DATA["iterable dataset"][0], DATA["no batching"][0], DATA["no length"][0]])
def test_data_without_a_plan_trains_without_probes(data):
    def run(module, callbacks):
        L.seed_everything(0, verbose=False)
        module.net.reset_parameters()
        trainer(callbacks=callbacks, max_epochs=1).fit(module, data())
        return module.net.bias.tolist()

    assert run(Vamo(), [VAMOCallback(probes=0)]) == run(Linear(), [])


def test_data_without_length_but_with_a_limit():
    callback = VAMOCallback(probes=1)
    data = DataLoader(Indexed(4), batch_sampler=NoLength())
    trainer(callbacks=[callback], max_epochs=1, limit_train_batches=2).fit(Vamo(), data)
    assert callback.report.snapshots == 1


def test_a_loader_that_announces_too_many_batches():
    class Liar(NoLength):
        def __len__(self):
            return 5

    with pytest.raises(UnsupportedError, match="announced 5 batches but gave 2"):
        fit(Vamo(), DataLoader(Indexed(4), batch_sampler=Liar()))


@pytest.mark.parametrize("replace", ["on the object", "on the class"])
def test_a_training_step_that_was_replaced(replace):
    class Replaced(Vamo):
        pass

    module = Replaced()
    if replace == "on the object":
        module.training_step = lambda batch, batch_idx: Linear.training_step(module, batch, batch_idx)
    else:
        Replaced.training_step = Linear.training_step
    with pytest.raises(UnsupportedError, match="`training_step` was replaced"):
        fit(module)


def test_with_vamo_of_an_object_whose_step_was_replaced():
    module = Linear()
    module.training_step = lambda batch, batch_idx: None
    with pytest.raises(UnsupportedError, match="`training_step` was replaced on this Linear object"):
        with_vamo(module)


def test_the_mixin_behind_the_module():
    with pytest.raises(UnsupportedError, match="Wrong names the VAMOMixin after its LightningModule: put the mixin first"):
        type("Wrong", (Linear, VAMOMixin), {})


def test_a_property_of_its_own_for_automatic_optimization():
    class Own(Vamo):
        @property
        def automatic_optimization(self):
            return True

    with pytest.raises(UnsupportedError, match=r"Own overrides the property `automatic_optimization`.*remove the override"):
        trainer(callbacks=[VAMOCallback()]).fit(Own(), DataLoader(Indexed(4)))


def test_a_module_compiled_as_a_whole():
    with pytest.raises(UnsupportedError, match=r"compiled as a whole.*torch.compile\(self.net\)"):
        trainer(callbacks=[VAMOCallback()]).fit(torch.compile(Vamo(), backend="eager"), DataLoader(Indexed(4)))


def test_lazy_parameters():
    class Lazy(Vamo):
        def __init__(self):
            super().__init__()
            self.net = nn.LazyLinear(2)

    with pytest.raises(UnsupportedError, match="run one forward pass"):
        trainer(callbacks=[VAMOCallback()]).fit(Lazy(), DataLoader(Indexed(4)))
    trainer(callbacks=[VAMOCallback(probes=0)], max_epochs=1).fit(Lazy(), DataLoader(Indexed(4)))


@pytest.mark.parametrize("directions", [None, GradientSubspaceDirections()])
def test_sparse_gradients(directions):
    class Sparse(Vamo):
        def __init__(self):
            super().__init__()
            self.net = nn.Embedding(8, 2, sparse=True)

        def training_step(self, batch, batch_idx):
            return self.net(batch.long()).sum()

    with pytest.raises(UnsupportedError, match="sparse=False"):
        fit(Sparse(), callback=VAMOCallback(probes=1, directions=directions))


@pytest.mark.parametrize(
    ("callback", "error", "words"),
    [
        (None, InvalidArgumentError, "real floating-point tensors, got a tensor of type torch.complex64"),
        (SVRGCallback(), UnsupportedError, "real parameters only, got a parameter of type torch.complex64: freeze"),
        (SVRGCallback(gradients="cache"), UnsupportedError, "real parameters only"),
        (SVRGCallback(gradients="carry"), UnsupportedError, "real parameters only"),
    ],
)
def test_complex_parameters(callback, error, words):
    class Complex(Vamo):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 2, dtype=torch.complex64)

        def training_step(self, batch, batch_idx):
            return self.net(batch.to(torch.complex64)).abs().sum()

    with pytest.raises(error, match=words):
        fit(Complex(), callback=callback)


@pytest.mark.parametrize("loss", [torch.zeros(3), "1.0"])
def test_a_probe_loss_that_is_no_loss(loss):
    class Odd(Vamo):
        def probe_loss(self, batch, batch_idx):
            return loss

    with pytest.raises(InvalidArgumentError, match="a number or a tensor of one element"):
        fit(Odd())


def test_independent_directions_in_too_small_a_space_are_warned_about():
    callback = VAMOCallback(probes=5, directions=SphereDirections())
    with pytest.warns(UserWarning, match=r"5 probes along SphereDirections and 2 trainable .*: use at most 2 probes\.$"):
        trainer(callbacks=[callback], max_epochs=1).fit(Small(), DataLoader(Indexed(4)))


class Small(Vamo):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)


def test_a_step_that_fetches_its_own_batches():
    class Fetching(Vamo):
        def training_step(self, dataloader_iter):
            return self.net(next(dataloader_iter)[0]).sum()

    with pytest.raises(UnsupportedError, match="dataloader_iter"):
        fit(Fetching())


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies(strategy):
    with pytest.raises(
        UnsupportedError, match=f"{strategy.__name__}: .* Use Trainer\\(strategy='ddp'\\).*ModelParallelStrategy \\(FSDP2\\)"
    ):
        check_strategy(strategy.__new__(strategy), "VAMOCallback")


def test_processes_that_share_their_weights():
    run = trainer(devices=2, strategy=DDPStrategy(start_method="forkserver"))
    message = "start_method='forkserver'\\) on a CPU.*use start_method='popen', 'spawn' or 'fork'"
    with pytest.raises(UnsupportedError, match=f"VAMOCallback .*{message}"):
        check_strategy(run.strategy, "VAMOCallback")
    with pytest.raises(UnsupportedError, match=f"find_probes .*{message}"):
        find_probes(run, Vamo(), train_dataloaders=DataLoader(Indexed(8), batch_size=2))
    check_strategy(trainer(devices=2, strategy=DDPStrategy(start_method="spawn")).strategy, "VAMOCallback")


@pytest.mark.parametrize("family", [OrthonormalDirections(), CoordinateDirections()])
def test_more_probes_than_parameters(family):
    with pytest.raises(InvalidArgumentError, match=r"5 orthonormal directions in a space of 4 .* at most 4 probes"):
        fit(Vamo(), callback=VAMOCallback(probes=5, directions=family))


def test_more_probes_than_parameters_in_a_later_epoch():
    class Growing:
        def probes_at(self, epoch):
            return 4 + epoch

    callback = VAMOCallback(probes=Growing(), directions=OrthonormalDirections())
    with pytest.raises(InvalidArgumentError, match="at most 4 probes"):
        trainer(callbacks=[callback], max_epochs=3).fit(Vamo(), DataLoader(Indexed(8)))


def test_a_schedule_that_gives_nonsense():
    class Nonsense:
        def probes_at(self, epoch):
            return -3

    with pytest.raises(InvalidArgumentError, match=r"`Nonsense.probes_at\(0\)` must be a whole number >= 0, got -3"):
        fit(Vamo(), callback=VAMOCallback(probes=Nonsense()))


def test_no_trainable_parameters():
    module = Vamo()
    module.requires_grad_(False)
    with pytest.raises(UnsupportedError, match="no trainable parameters"):
        fit(module)


@pytest.mark.filterwarnings("ignore:.LightningModule.configure_optimizers. returned .None.")
def test_no_optimizer():
    class Nothing(Vamo):
        def configure_optimizers(self):
            return None

    with pytest.raises(UnsupportedError, match="`configure_optimizers` returned None, so there is no optimizer"):
        fit(Nothing())


@pytest.mark.parametrize("control", ["replay", "recompute"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda loss: loss.to(torch.complex64), "`loss` must be a real number, got a complex tensor"),
        (lambda loss: None, "returned None for every batch of the epoch.*from `probe_loss` if the module defines it"),
        (lambda loss: [float(loss)], "`loss` must be a number or a tensor of one element, got "),
    ],
    ids=["complex", "None", "a list"],
)
def test_a_probe_loss_that_cannot_be_probed(change, message, control):
    class Odd(Vamo):
        def probe_loss(self, batch, batch_idx):
            return change(super().probe_loss(batch, batch_idx))

    with pytest.raises((InvalidArgumentError, UnsupportedError), match=message):
        fit(Odd(), callback=VAMOCallback(probes=1, control=control))


@pytest.mark.parametrize("control", ["replay", "recompute"])
@pytest.mark.parametrize("number", [float, lambda loss: np.float32(float(loss))], ids=["Python", "NumPy"])
def test_a_probe_loss_that_is_a_plain_number(number, control):
    def weights(change):
        class Scored(Vamo):
            def probe_loss(self, batch, batch_idx):
                return change(super().probe_loss(batch, batch_idx))

        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = Scored()
        callback = VAMOCallback(probes=1, control=control, seed=0)
        trainer(callbacks=[callback], max_epochs=1).fit(module, DataLoader(Indexed(8), batch_size=2))
        assert callback.report.steps == 4
        return torch.cat([weight.flatten() for weight in module.state_dict().values()])

    assert torch.equal(weights(number), weights(lambda loss: loss))


@pytest.mark.parametrize("control", ["replay", "recompute"])
@pytest.mark.parametrize("mu", [0.01, "auto"])
def test_a_probe_loss_that_depends_on_nothing(mu, control):
    class Constant(Vamo):
        def probe_loss(self, batch, batch_idx):
            return torch.tensor(3.0)

    with pytest.warns(UserWarning, match="No loss changed along any probe direction.*depends on the trainable weights"):
        trainer(callbacks=[VAMOCallback(probes=1, control=control, mu=mu)], max_epochs=1).fit(
            Constant(), DataLoader(Indexed(4))
        )


def test_a_loss_that_does_not_depend_on_the_parameters():
    class Detached(Vamo):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).detach()

    with pytest.raises(UnsupportedError, match="does not depend on any trainable parameter"):
        fit(Detached())


@pytest.mark.filterwarnings("ignore:.training_step. returned")
def test_a_step_that_skips_every_batch():
    class Skipping(Vamo):
        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(UnsupportedError, match="None for every batch"):
        fit(Skipping(), callback=VAMOCallback(probes=1, directions=SphereDirections()))


def test_a_step_that_returns_nonsense():
    class Nonsense(Vamo):
        def training_step(self, batch, batch_idx):
            return "loss"

    with pytest.raises(L.fabric.utilities.exceptions.MisconfigurationException, match="must return a Tensor, a dict, or None"):
        fit(Nonsense())


class Penalised(Vamo):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + sum(g.square().sum() for g in torch.autograd.grad(loss, [*self.parameters()], create_graph=True))


@pytest.mark.parametrize("method", [MeZOCallback, lambda: VAMOCallback(probes=1, directions=SphereDirections())])
def test_a_step_that_differentiates_by_itself(method):
    with pytest.raises(UnsupportedError, match=r"`training_step` differentiates, .*: define `probe_loss\(batch, batch_idx\)`"):
        fit(Penalised(), callback=method())


def test_a_coefficient_far_above_the_theorys_is_warned_about():
    with pytest.warns(
        UserWarning, match=r"adds more variance than it removes .*: set `alpha` to about .*, or leave `alpha` out"
    ):
        trainer(callbacks=[VAMOCallback(probes=1, alpha=1.0)], max_epochs=1).fit(Vamo(), DataLoader(Indexed(4)))


def test_with_vamo_of_something_else():
    with pytest.raises(UnsupportedError, match="must be a LightningModule, got Linear"):
        with_vamo(nn.Linear(1, 1))


def test_an_error_in_training_gives_the_module_back():
    class Interrupted(Everything):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            raise RuntimeError("stop")

    module = with_vamo(Interrupted())
    with pytest.raises(RuntimeError, match="stop"):
        trainer(callbacks=[VAMOCallback(probes=1)]).fit(module, *loaders())
    assert module.automatic_optimization
    assert "run" not in vars(module.trainer.fit_loop.epoch_loop.automatic_optimization)
