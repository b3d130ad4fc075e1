"""What the callback logs, schedules, shows and checkpoints."""

import copy
import io
import pickle
import re

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar

from lightning_vamo import MethodReport, MeZOCallback, Replay, VAMOCallback, VAMOMixin, with_vamo
from lightning_vamo.core.directions import OrthonormalDirections
from lightning_vamo.core.schedules import ExponentialProbes, LinearProbes
from tests.support.modules import Data, Everything, VAMOEverything, loaders, trainer
from tests.support.watched import WatchedSweeps

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Logs(L.Callback):
    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, fit, module):
        self.epochs.append({k: v.item() for k, v in fit.callback_metrics.items() if k.startswith("vamo/")})


def fit(callback, module=None, callbacks=(), **options):
    L.seed_everything(0, verbose=False)
    module = module or VAMOEverything()
    logs = Logs()
    run = trainer(callbacks=[callback, *callbacks, logs], **options)
    run.fit(module, *loaders())  # 90 samples in batches of 8: 12 batches
    return run, module, logs.epochs


# Evaluations of a sweep beside those of the table: a batch a second time, 8 at twice the radius and 4 at half of it.
LOOKS = 1 + 8 + 4


def test_figures():
    callback = VAMOCallback(probes=3, mu=0.02, alpha=0.01)
    run, module, epochs = fit(callback, max_epochs=2)
    last = {k: v.item() for k, v in run.callback_metrics.items()}
    assert epochs[-1]["vamo/probes"] == 3
    dimension = sum(parameter.numel() for parameter in module.parameters())
    assert epochs[-1]["vamo/alpha"] == pytest.approx(0.01 * dimension / 3)
    assert epochs[-1]["vamo/mu"] == pytest.approx(0.02)
    # 12 batches are a warm-up.
    assert epochs[-1]["vamo/forward_evaluations"] == 2 * (12 * (1 + 3) + LOOKS) + 2 * 12 + 12
    assert epochs[-1]["vamo/backward_evaluations"] == 2 * 12 + 12
    assert epochs[-1]["vamo/sweep_seconds"] > 0
    assert 0.5 < last["vamo/snapshot_loss"] < 2
    report = callback.report
    assert (report.snapshots, report.steps, report.warmup_evaluations) == (2, 24, 12)
    assert report.relative_cost == pytest.approx((158 + 2 * 36) / 72)  # plain training has no warm-up
    assert report.worth_of_equal_batch == pytest.approx(1 - 72 / 230)
    removed = sorted(epoch["vamo/variance_removed"] for epoch in epochs)
    assert removed[0] < report.variance_removed < removed[1]  # a mean that weighs an epoch by its gradients
    assert 0 < report.sweep_seconds < report.training_seconds
    added = report.sweep_seconds + report.warmup_seconds
    assert report.relative_time == pytest.approx(1 / (1 - added / report.training_seconds))
    assert "2 snapshots, 24 corrected steps, 12 batches of warm-up" in str(report)
    assert "did not pay" in str(report)


@pytest.mark.parametrize(
    ("removed", "seconds", "verdict"),
    [
        (0.7, 1.0, "the probes paid. For 2.00× the compute of plain training they removed 70 % .* removes 50 % at most.$"),
        (0.7, 9.0, "the probes paid. .* at most. By the clock of this machine they did not pay.$"),
        (
            0.2,
            1.0,
            "the probes did not pay. .* By the clock of this machine they did pay, the time of learning .* not counted.$",
        ),
        (
            0.2,
            9.0,
            "did not pay. You paid 2.00× .* up to 50 % .* removed 20 %. Train with probes=0, or with a larger batch.$",
        ),
    ],
)
def test_the_report_weighs_what_was_removed_against_evaluations_and_the_clock(removed, seconds, verdict):
    report = MethodReport(
        snapshots=1,
        steps=10,
        batches=10,
        forward_evaluations=40,
        backward_evaluations=10,
        warmup_evaluations=0,
        sweep_seconds=seconds - 0.5,
        warmup_seconds=0.5,
        training_seconds=10.0,
        variance_removed=removed,
    )
    assert report.relative_cost == 2
    assert re.search(verdict, str(report).splitlines()[0])


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        (
            {"rows_unused": 1},
            "no step was corrected.* you paid 2.00× .*: 1 batch differed from what the sweep had seen .*recompute",
        ),
        ({"snapshots": 0}, "no step was corrected, and you paid 2.00× .*: there was no snapshot"),
        ({}, "no step was corrected, and you paid 2.00× .*: no row of a batch was finite"),
        ({"batches": 0, "forward_evaluations": 0}, "VAMO: no batch has been trained on.$"),
        (
            {"forward_evaluations": 10, "variance_removed": 0.3},
            "the probes paid. They removed 30 % .* at no extra evaluation.$",
        ),
        ({"method": "MeZO", "made_of": None}, "MeZO: 10 batches were trained on, at 2.00× the compute of plain training.$"),
        ({"method": "MeZO", "made_of": None, "batches": 1}, "MeZO: 1 batch was trained on, "),
    ],
)
def test_the_report_gives_cost_and_cause_in_its_first_line(figures, sentence):
    plain = dict.fromkeys(("warmup_evaluations", "sweep_seconds", "warmup_seconds", "training_seconds"), 0)
    counts = {"snapshots": 1, "steps": 0, "batches": 10, "forward_evaluations": 40, "backward_evaluations": 10}
    report = MethodReport(**{**plain, **counts, "variance_removed": None, **figures})
    assert re.search(sentence, str(report).splitlines()[0])


def test_central_differences_cost_twice_the_forwards():
    callback = VAMOCallback(probes=3, mu=1e-2, difference="central")
    fit(callback, max_epochs=1)
    assert callback.report.forward_evaluations == 12 * (1 + 6) + 2 * (LOOKS - 1) + 1 + 12 + 12


def test_snapshot_loss_is_the_training_loss_at_the_snapshot():
    class Deterministic(VAMOEverything):
        def __init__(self):
            super().__init__()
            self.net[1], self.net[3] = torch.nn.Identity(), torch.nn.Identity()

    module = Deterministic()
    train, _ = loaders()
    inputs, labels = train.dataset.tensors
    expected = torch.nn.functional.cross_entropy(module.net(inputs), labels).item()

    callback = WatchedSweeps(probes=1, mu=1e-3)
    fit(callback, module, max_epochs=1)
    assert callback.sweeps[0].snapshot_loss == pytest.approx(expected, rel=1e-5)


def test_probe_counts_follow_the_schedule():
    for schedule, expected in (
        (LinearProbes(start=0, end=4, epochs=3), [0, 2, 4, 4]),
        (ExponentialProbes(start=4, factor=0.5, every_n_epochs=1, maximum=4), [4, 2, 1, 0]),
    ):
        callback = VAMOCallback(probes=schedule, mu=1e-2)
        _, _, epochs = fit(callback, max_epochs=4)
        assert [epoch["vamo/probes"] for epoch in epochs] == expected
        assert callback.report.forward_evaluations == 4 * 12 + sum(12 * (1 + q) + LOOKS for q in expected if q) + 12


def test_no_probes_between_snapshots_of_no_probes():
    callback = VAMOCallback(probes=LinearProbes(start=0, end=2, epochs=3), mu=1e-3, control=Replay(every_n_epochs=2))
    _, _, epochs = fit(callback, max_epochs=4)
    assert [epoch["vamo/probes"] for epoch in epochs] == [0, 0, 2, 2]


def test_the_seed_decides_the_directions():
    def weights(**arguments):
        _, module, _ = fit(VAMOCallback(probes=2, mu=1e-3, **arguments), max_epochs=1, limit_train_batches=6)
        return module.net[0].weight.detach()

    assert torch.equal(weights(seed=1), weights(seed=1))
    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(seed=1), weights(seed=2))


def test_both_storages_train_alike():
    def weights(storage):
        _, module, _ = fit(VAMOCallback(probes=3, mu=1e-3, directions=OrthonormalDirections(storage), seed=1), max_epochs=1)
        return module.net[0].weight.detach()

    assert torch.allclose(weights("stored"), weights("seeded"), atol=1e-4)


def test_a_probe_loss_of_its_own():
    class Cheap(VAMOEverything):
        def probe_loss(self, batch, batch_idx):
            assert not torch.is_grad_enabled()
            self.probed = getattr(self, "probed", 0) + 1
            self.positions = [*getattr(self, "positions", []), batch_idx]
            inputs, labels = batch
            return torch.nn.functional.cross_entropy(self.net(inputs), labels)

    module = Cheap()
    callback = VAMOCallback(probes=1)
    fit(callback, module, max_epochs=1)
    assert module.calls == 12  # the sweep did not run the training step
    assert not hasattr(module, "probed")  # and what the probe did is undone
    assert callback.report.snapshots == 1


def test_a_probe_loss_of_the_class_behind_the_mixin():
    class Own(Everything):
        def probe_loss(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    for module in (with_vamo(Own()), type("Mixed", (VAMOMixin, Own), {})()):
        fit(VAMOCallback(probes=1), module, max_epochs=1)
        assert module.calls == 12


def test_parameters_that_are_frozen_or_unused_stay_as_they_are():
    class Partial(VAMOEverything):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Linear(3, 3)
            self.net[0].bias.requires_grad_(False)

    module = Partial()
    before = {name: p.clone() for name, p in module.named_parameters()}
    fit(VAMOCallback(probes=2, mu=1e-3), module)
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"net.0.weight", "net.1.weight", "net.1.bias", "net.4.weight", "net.4.bias"}


def test_batches_that_training_skips_have_no_row():
    class Skipping(VAMOEverything):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx in (2, 5) else loss

    callback = WatchedSweeps(probes=2)
    with pytest.warns(UserWarning, match="`training_step` returned None"):
        fit(callback, Skipping(), max_epochs=1)
    assert [k for k, weight in enumerate(callback.sweeps[0].weights.tolist()) if weight == 0] == [2, 5]
    assert callback.sweeps[0].deltas[[2, 5]].abs().max() == 0
    assert callback.report.steps == 10


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_progress_bars(bar, capsys):
    shown = []

    class Slow(VAMOEverything):
        def probe_loss(self, batch, batch_idx):
            progress = self.trainer.progress_bar_callback
            if bar is RichProgressBar:
                shown.extend(task.description for task in progress.progress.tasks)
            return super().probe_loss(batch, batch_idx)

    callback = VAMOCallback(probes=1, mu=1e-3)
    progress = bar()
    fit(callback, Slow(), callbacks=[progress], enable_progress_bar=True, max_epochs=2)
    output = capsys.readouterr().out
    if bar is RichProgressBar:
        assert any("VAMO sweep" in description for description in shown)
    else:
        assert "VAMO warm-up" in output
        assert "VAMO sweep" in output
        assert "12/12" in output


def test_classes_with_the_mixin_can_be_copied_and_pickled():
    module = with_vamo(Everything(lr=0.3))
    assert isinstance(module, VAMOMixin)
    assert with_vamo(module) is module
    assert type(with_vamo(Everything())) is type(module)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(twin) is type(module)
        assert twin.hparams.lr == 0.3
        assert torch.equal(twin.net[0].weight, module.net[0].weight)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    assert type(torch.load(buffer, weights_only=False)) is type(module)


def test_outside_fit_the_module_is_the_plain_one():
    module = with_vamo(Everything())
    batch = next(iter(loaders()[0]))
    module.log = module.log_dict = lambda *args, **kwargs: None
    assert module.training_step(batch, 0).requires_grad


def test_checkpoints_load_into_the_plain_class_and_back(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="last")
    _, module, _ = fit(VAMOCallback(probes=2, mu=1e-3), callbacks=[saver], enable_checkpointing=True, max_epochs=1)
    plain = Everything.load_from_checkpoint(tmp_path / "last.ckpt")
    assert type(plain) is Everything
    assert torch.equal(plain.net[0].weight, module.net[0].weight)
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, filename="plain")])
    run.fit(plain, *loaders())
    again = VAMOEverything.load_from_checkpoint(tmp_path / "plain.ckpt")
    assert torch.equal(again.net[0].weight, plain.net[0].weight)


def resumable(path, callback, epochs, ckpt=None, cls=VAMOEverything):
    L.seed_everything(0, verbose=False)
    module = cls()
    saver = ModelCheckpoint(path, filename="{epoch}", save_top_k=-1)
    run = trainer(path, callbacks=[saver, *([callback] if callback else [])], enable_checkpointing=True, max_epochs=epochs)
    run.fit(module, loaders(shuffle=False)[0], ckpt_path=ckpt, weights_only=True)
    return run, module


def test_resuming_at_an_epochs_end_goes_on_as_if_nothing_had_happened(tmp_path):
    class NoDropout(VAMOEverything):
        """Lightning does not checkpoint the global generator, from which dropout draws."""

        def __init__(self):
            super().__init__()
            self.net[3] = torch.nn.Identity()

    whole, parts, resumed = (VAMOCallback(probes=2, mu=1e-3) for _ in range(3))
    _, expected = resumable(tmp_path / "whole", whole, 3, cls=NoDropout)
    resumable(tmp_path / "parts", parts, 1, cls=NoDropout)
    L.seed_everything(99, verbose=False)
    run, module = resumable(tmp_path / "parts", resumed, 3, ckpt=tmp_path / "parts" / "epoch=0.ckpt", cls=NoDropout)
    assert run.global_step == 36
    for name, weight in expected.state_dict().items():
        assert torch.equal(module.state_dict()[name], weight)
    for figure in ("snapshots", "steps", "forward_evaluations", "backward_evaluations", "variance_removed"):
        assert getattr(resumed.report, figure) == getattr(whole.report, figure)


@pytest.mark.parametrize("first", [None, VAMOCallback])
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_a_plain_run_resumes_with_vamo_and_the_other_way_round(first, tmp_path):
    second = VAMOCallback if first is None else None
    before, after = (Everything if c is None else VAMOEverything for c in (first, second))
    resumable(tmp_path, first and first(probes=1, mu=1e-3), 1, cls=before)
    run, _ = resumable(tmp_path, second and second(probes=1, mu=1e-3), 2, ckpt=tmp_path / "epoch=0.ckpt", cls=after)
    assert run.global_step == 24
    assert run.current_epoch == 2


def test_interrupting_by_hand_gives_everything_back():
    class Interrupted(VAMOEverything):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.trainer.global_step == 14:
                raise KeyboardInterrupt

    module = Interrupted()
    train, val = loaders()
    sampler = train.batch_sampler
    run = trainer(callbacks=[VAMOCallback(probes=1, mu=1e-3)])
    with pytest.raises(SystemExit):
        run.fit(module, train, val)
    assert train.batch_sampler is sampler
    assert module.automatic_optimization
    assert run.global_step == 14
    report = run.callbacks[0].report
    assert report.steps == 14
    assert report.variance_removed is not None
    assert report.sweep_seconds < report.training_seconds


def test_a_second_fit_counts_and_seeds_anew():
    callback = VAMOCallback(probes=2, mu=1e-3)
    _, first, _ = fit(callback, max_epochs=1)
    _, second, _ = fit(callback, max_epochs=1)
    assert callback.report.snapshots == 1
    assert torch.equal(first.net[0].weight, second.net[0].weight)


def test_each_epoch_and_the_end_are_told_unless_that_is_switched_off(caplog):
    caplog.set_level("INFO")
    callback = VAMOCallback(probes=1, mu=0.01)
    fit(callback)
    told = [record.message for record in caplog.records if record.message.startswith("VAMO")]
    for epoch, line in enumerate(told[:2]):
        assert re.fullmatch(
            rf"VAMO, epoch {epoch}: -?[\d.e-]+ % of the gradient's second moment removed with 1 probe, at [\d.]+× the"
            r" compute of plain training so far\.",
            line,
        )
    assert [line.splitlines()[1:3] for line in told[2:]] == [str(callback.report).splitlines()[1:3]]
    caplog.clear()
    fit(VAMOCallback(probes=1, mu=0.01, verbose=False))
    fit(VAMOCallback(probes=0))
    assert not [record for record in caplog.records if record.message.startswith("VAMO")]


@pytest.mark.filterwarnings("ignore:.training_step. returned")
def test_without_probes_the_report_counts_the_batches_of_the_last_fit():
    class Skips(VAMOEverything):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    callback = VAMOCallback(probes=0)
    assert str(callback.report) == "VAMO: no batch has been trained on."
    for cls, skipped in ((VAMOEverything, 0), (Skips, 2)):
        run, _, _ = fit(callback, cls(), max_epochs=2)
        batches = 2 * run.num_training_batches
        report = callback.report
        assert (report.forward_evaluations, report.backward_evaluations) == (batches, batches - skipped)
        assert str(report).startswith(f"VAMO: {batches - skipped} batches were trained on, at ")


def test_a_run_that_is_interrupted_tells_what_it_cost(caplog):
    class Interrupts(L.Callback):
        def on_train_batch_end(self, run, *arguments):
            if run.global_step == 5:
                raise KeyboardInterrupt

    caplog.set_level("INFO")
    callback = VAMOCallback(probes=1, mu=0.01)
    with pytest.raises(SystemExit):
        fit(callback, callbacks=[Interrupts()])
    [told] = [record.message for record in caplog.records if record.message.startswith("VAMO")]
    assert told.startswith("VAMO: interrupted after 5 batches, too soon for a verdict.\n")
    assert told.splitlines()[1:3] == str(callback.report).splitlines()[1:3]  # what was counted; the clock runs on


def test_a_run_that_is_interrupted_late_gets_its_verdict(caplog):
    class Interrupts(L.Callback):
        def on_train_epoch_start(self, run, *arguments):
            if run.current_epoch == 1:
                raise KeyboardInterrupt

    caplog.set_level("INFO")
    with pytest.raises(SystemExit):
        fit(VAMOCallback(probes=1, mu=0.01), callbacks=[Interrupts()])
    assert [record.message for record in caplog.records if record.message.startswith("VAMO: the probes ")]


class Logged(L.pytorch.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))


def test_a_snapshots_figures_are_logged_once_at_its_step():
    logger = Logged()
    run, _, _ = fit(VAMOCallback(probes=1, mu=0.01), logger=logger, max_epochs=2)
    rows = [(step, metrics["vamo/snapshot_loss"]) for step, metrics in logger.rows if "vamo/snapshot_loss" in metrics]
    assert [step for step, _ in rows] == [0, 12]
    assert rows[1][1] == pytest.approx(run.callback_metrics["vamo/snapshot_loss"].item())


class Counts(L.Callback):
    """Asks for the number of steps, for which the Trainer sets up the training loaders."""

    def setup(self, trainer, module, stage):
        self.steps = trainer.estimated_stepping_batches


class CountsInData(Data):
    def setup(self, stage):
        assert self.trainer.estimated_stepping_batches == 3 * 12


@pytest.mark.parametrize("kind", ["carry", "replay", "mezo"])
def test_loaders_that_were_set_up_before_the_callback_saw_them_are_recorded_too(kind, tmp_path):
    def trained(data, *before, ckpt=None):
        L.seed_everything(5, verbose=False)
        method = MeZOCallback(seed=1) if kind == "mezo" else VAMOCallback(probes=2, mu=1e-3, seed=1, control=kind)
        saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4)
        run = trainer(tmp_path, callbacks=[*before, method, saves], max_epochs=3, enable_checkpointing=True)
        module = VAMOEverything()
        run.fit(module, datamodule=data, ckpt_path=ckpt)
        return module.state_dict()

    expected = trained(Data())
    counts = Counts()
    for data, before in ((Data(), [counts]), (CountsInData(), [])):
        assert all(torch.equal(value, expected[name]) for name, value in trained(data, *before).items())
        resumed = trained(data, *before, ckpt=tmp_path / "step=16.ckpt")  # within the second epoch
        assert all(torch.equal(value, expected[name]) for name, value in resumed.items())
    assert counts.steps == 3 * 12
