"""The choice by measurement in training: it takes carried rows where they pay, and is plain Lightning where nothing does."""

import itertools
import math
import re

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from lightning_vamo import InvalidArgumentError, VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import SphereDirections
from lightning_vamo.core.schedules import EfficientProbes
from lightning_vamo.loop.control import choice, chosen, replayed
from lightning_vamo.loop.control.carried import Carry
from lightning_vamo.loop.control.looks import BURST, JUDGED
from lightning_vamo.loop.control.replayed import Replay
from lightning_vamo.loop.ledger.clocks import StepTimes
from lightning_vamo.loop.ledger.losses import EpochLosses
from lightning_vamo.loop.step.driver import ManualSteps
from tests.support import resuming
from tests.support.modules import trainer

pytestmark = resuming.WARNINGS
STEPS = 100


class Softmax(L.LightningModule):
    """Softmax regression on digits; with ``fresh`` noise, gradients are mostly noise that no row can know."""

    def __init__(self, fresh=0.0):
        super().__init__()
        self.fresh = fresh
        self.net = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.net(images)
        noise = self.fresh * (torch.randn(10, 64) * self.net.weight).sum() if self.fresh else 0.0
        return nn.functional.cross_entropy(logits, labels) + noise

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class VAMOSoftmax(VAMOMixin, Softmax):
    pass


def data():
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images[: 16 * STEPS]).float() / 16, torch.tensor(labels[: 16 * STEPS]))


def auto(maximum=4, retry_after=1, **arguments):
    return VAMOCallback(probes=EfficientProbes(maximum, retry_after, cost="evaluations"), seed=1, **arguments)


def fit(callback, module=None, epochs=5, callbacks=(), ckpt=None, **options):
    module = VAMOSoftmax() if module is None else module
    L.seed_everything(1, verbose=False)
    with torch.random.fork_rng():
        module.net.reset_parameters()
    run = trainer(callbacks=[*([] if callback is None else [callback]), *callbacks], max_epochs=epochs, **options)
    loaders = None if isinstance(module, Reloading) else DataLoader(data(), 16, shuffle=True)
    run.fit(module, loaders, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return run, module


@pytest.fixture
def driven(monkeypatch):
    """Batches that the callback's step has trained on, counted over the epochs; the others are Lightning's."""
    batches, step = [], ManualSteps._step

    def counted(self, module, user_step, batch):
        fit = module.trainer
        batches.append(fit.current_epoch * fit.num_training_batches + fit.fit_loop.batch_idx)
        return step(self, module, user_step, batch)

    monkeypatch.setattr(ManualSteps, "_step", counted)
    return batches


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_callback_without_arguments_measures_what_pays():
    callback = VAMOCallback()
    assert isinstance(callback.settings.schedule, EfficientProbes)
    assert set(callback.control.kinds) == {"carry", "replay", "recompute"}


def test_carried_rows_are_found_to_pay_without_an_evaluation(driven, caplog):
    with caplog.at_level("INFO"):
        callback = auto()
        run, _ = fit(callback)
    report = callback.report
    assert report.forward_evaluations == report.backward_evaluations == run.global_step == 5 * STEPS
    assert [(decided.kind, decided.epoch, decided.step) for decided in report.decisions] == [
        ("look", 1, STEPS),
        ("carry", 2, 2 * STEPS + JUDGED),
    ]
    assert run.callback_metrics["vamo/decision"] == 2
    assert run.callback_metrics["vamo/variance_removed"] > 0.1
    assert 0.1 < report.decisions[-1].removed < 0.7
    # A burst at the end of the first epoch, and all steps from the second epoch on.
    assert driven == list(range(STEPS - BURST, 5 * STEPS))
    said = [record.message for record in caplog.records if re.match(r"VAMO, epoch \d: carried", record.message)]
    assert re.fullmatch(
        r"VAMO, epoch 1: carried rows along 4 directions may remove up to \d+ % of the gradient noise: .*", said[0]
    )
    assert re.fullmatch(
        r"VAMO, epoch 2: carried rows along 4 directions remove \d+ % of the gradient noise at no extra evaluation\.", said[1]
    )


class Epochs(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, fit, module):
        metrics = fit.callback_metrics
        self.seen.append((int(metrics["vamo/probes"]), float(metrics.get("vamo/alpha", 0)) > 0))


@pytest.mark.parametrize("callback", [auto(), VAMOCallback(probes=4, control="carry", seed=1)], ids=["auto", "carry"])
def test_only_what_is_applied_is_logged(callback):
    """An epoch of looks, or of a table that fills, applies nothing."""
    epochs = Epochs()
    fit(callback, epochs=4, callbacks=[epochs])
    applied = [probes > 0 for probes, _ in epochs.seen]
    assert applied == sorted(applied)
    assert applied[0] is False
    assert [factor for _, factor in epochs.seen] == applied
    assert epochs.seen[-1] == (4, True)


def test_a_callback_that_is_not_verbose_says_nothing(caplog):
    with caplog.at_level("INFO"):
        callback = auto(verbose=False)
        fit(callback, epochs=3)
    assert callback.report.decisions
    assert [record.message for record in caplog.records if record.message.startswith("VAMO")] == []


def test_where_rows_explain_nothing_training_is_plain_and_looks_ever_more_rarely(driven, caplog):
    with caplog.at_level("INFO"):
        callback = auto(maximum=8, retry_after=2)
        run, _ = fit(callback, VAMOSoftmax(fresh=1.0), epochs=12)
    assert callback.report.forward_evaluations == callback.report.backward_evaluations == 12 * STEPS
    kinds = [decided.kind for decided in callback.report.decisions]
    assert set(kinds) <= {"look", "nothing"}
    assert kinds[-1] == "nothing"
    assert len({batch // STEPS for batch in driven}) <= 6
    said = [
        re.search(r"VAMO, epoch (\d+): .*; training plainly, next look at epoch (\d+)\.", r.message) for r in caplog.records
    ]
    pauses = [int(match[2]) - int(match[1]) for match in said if match]
    assert pauses == [2 * 2**index for index in range(len(pauses))]
    assert len(pauses) >= 2
    assert run.callback_metrics["vamo/decision"] == 0


class StopAfterTwoEpochs(L.Callback):
    def on_train_epoch_end(self, fit, module):
        fit.should_stop = fit.current_epoch == 1


class Falls(EpochLosses):
    """The fall that a test says, from the third epoch on."""

    falls = ()

    def fall(self):
        return dict(enumerate(self.falls, 2)).get(self._epochs[-1])


@pytest.fixture
def falls(monkeypatch):
    monkeypatch.setattr(choice, "EpochLosses", Falls)
    return lambda *shares: monkeypatch.setattr(Falls, "falls", shares)


def said_by(caplog):
    said = [record.message for record in caplog.records]
    return [message for message in said if re.match(r"VAMO, epoch \d: (?!no gradient|.*removed)", message)]


@pytest.mark.parametrize("cost", [None, "seconds"])
def test_where_time_may_count_the_first_look_waits_for_a_loss_that_falls_slowly(cost, driven, falls, caplog):
    falls(0.2, 0.07, 0.01, 0.01)
    callback = VAMOCallback(probes=EfficientProbes(4, 1, cost=cost), seed=1)
    with caplog.at_level("INFO"):
        run, _ = fit(callback, epochs=8)
    assert driven[:BURST] == list(range(5 * STEPS - BURST, 5 * STEPS))
    assert said_by(caplog)[0] == (
        "VAMO, epoch 0: whether noise limits is not known yet: two whole epochs tell how fast the loss falls; training plainly,"
        " next look when the loss falls by less than 6 % an epoch."
    )
    assert said_by(caplog)[1] == (
        "VAMO, epoch 2: noise does not limit yet: the loss falls by 20 % an epoch; training plainly, next look when the loss"
        " falls by less than 6 % an epoch."
    )
    decided = [(decided.kind, decided.epoch) for decided in callback.report.decisions]
    assert decided[:2] == [("nothing", 0), ("nothing", 3)]  # the last one that was found to fall fast
    assert callback.report.decisions[1].reason.endswith("falls by 7 % an epoch")
    assert decided[2][1] == 5
    assert callback.report.forward_evaluations == run.global_step


def test_the_first_look_comes_at_once_even_where_directions_turn_in_other_epochs(driven, falls):
    falls(0.2, 0.01, 0.01, 0.01)
    control = Carry(turn_every_n_epochs=2)
    fit(VAMOCallback(probes=EfficientProbes(4, 1, cost="seconds"), control=control, seed=1), epochs=7)
    assert driven[0] == 4 * STEPS - BURST


@pytest.mark.parametrize(("accumulated", "waits"), [(3, True), (4, False)])
def test_the_first_look_does_not_wait_where_it_takes_two_epochs(accumulated, waits, driven, falls):
    falls(*[0.2] * 10)
    callback = VAMOCallback(probes=EfficientProbes(4, 1), seed=1)
    fit(callback, epochs=8, accumulate_grad_batches=accumulated)  # epochs of 34 or 25 steps
    assert bool(driven) != waits


class Learners(L.Callback):
    """The learner at the end of each epoch."""

    def __init__(self, callback):
        self.callback, self.seen = callback, []

    def on_train_epoch_end(self, fit, module):
        self.seen.append(self.callback._run.learning.learner)


def test_while_the_first_look_waits_nothing_is_learned_and_steps_are_lightning_s(driven, falls):
    falls(*[0.2] * 4)
    callback = VAMOCallback(probes=EfficientProbes(4, 1), seed=1)
    learners = Learners(callback)
    _, module = fit(callback, callbacks=[learners], epochs=6)
    assert not driven
    assert learners.seen == [None] * 6
    assert str(callback.report).startswith(
        "VAMO: the training was plain, at 1.00× the compute of plain training: noise does not limit yet: the loss falls by 20 %"
        " an epoch."
    )
    assert same(module, fit(None, Softmax(), epochs=6)[1])


def plain_since(callback):
    return str(callback.report).partition("plain training: ")[2].partition(".\n")[0]


@pytest.mark.parametrize(("epochs", "accumulated", "needed"), [(4, 1, 5), (5, 1, 5), (4, 2, 5), (5, 2, 5)])
def test_a_training_too_short_for_corrections_that_take_time_says_so(epochs, accumulated, needed, driven, falls, caplog):
    falls(0.01, 0.01, 0.01)
    callback = VAMOCallback(probes=EfficientProbes(20, 1, cost="seconds"), seed=1)
    with caplog.at_level("INFO"):
        fit(callback, epochs=epochs, accumulate_grad_batches=accumulated)  # a look takes 64 of 100 steps, or 42 of 50
    few = f"{epochs} epochs are too few for corrections that take time, which need {needed}"
    assert (f"VAMO, epoch 0: {few}." in said_by(caplog)) == (epochs < needed)
    assert bool(driven) == (epochs >= needed)


@pytest.mark.parametrize(
    ("epochs", "shares", "reason"),
    [
        (3, [0.2], "3 epochs are too few for corrections that take time, which need 5"),
        (6, [0.2, 0.2, 0.1, 0.09], "noise does not limit yet: the loss falls by 9 % an epoch"),
        (6, [0.2, 0.2, 0.01, 0.01], "too few epochs are left to learn directions, fill a table of rows and use it"),
        (4, [], "4 epochs are too few for corrections that take time, which need 5"),
    ],
)
def test_the_report_says_why_a_training_stayed_plain(epochs, shares, reason, falls):
    falls(*shares)
    callback = VAMOCallback(probes=EfficientProbes(4, 1), seed=1)
    run, _ = fit(callback, epochs=epochs)
    assert plain_since(callback) == reason
    assert [run.callback_metrics[f"vamo/{name}"] for name in ("decision", "expected_removed", "expected_work")] == [0, 0, 1]


def test_a_sweep_that_does_not_pay_is_the_reason_to_the_end():
    callback = VAMOCallback(probes=EfficientProbes(4, 1, cost="evaluations"), control="replay", seed=1)
    fit(callback, VAMOSoftmax(fresh=1.0), epochs=3)
    assert [decided.epoch for decided in callback.report.decisions] == [1]
    assert plain_since(callback).startswith("probes=0: the best number above 0, ")


def test_a_wait_ends_where_time_does_not_count_any_more(driven, falls):
    falls(*[0.2] * 6)

    class Becomes(L.Callback):
        def on_train_epoch_start(self, fit, module):
            torch.use_deterministic_algorithms(fit.current_epoch >= 3)

    try:
        fit(VAMOCallback(probes=EfficientProbes(4, 1), seed=1), callbacks=[Becomes()], epochs=6)
    finally:
        torch.use_deterministic_algorithms(False)
    assert driven[0] == 4 * STEPS - BURST


def test_a_plain_checkpoint_of_a_part_of_an_epoch_is_waited_on_as_long_as_another(driven, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=150)
    with pytest.raises(resuming.Killed):
        fit(None, Softmax(), callbacks=[saver, Dies(151)], enable_checkpointing=True)
    driven.clear()
    callback = VAMOCallback(probes=EfficientProbes(4, 1), seed=1)
    fit(callback, epochs=8, ckpt=tmp_path / "step=150.ckpt")
    assert not driven  # the loss of the first epochs falls fast
    assert [decided.epoch for decided in callback.report.decisions] == [1, 7]


def test_a_first_look_that_is_deterministic_does_not_wait(driven):
    torch.use_deterministic_algorithms(True)
    try:
        fit(VAMOCallback(probes=EfficientProbes(4, 1), seed=1), epochs=3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert driven[0] == STEPS - BURST


def test_until_rows_are_used_training_is_plain_lightning_bit_for_bit():
    """Learning and filling a table change nothing: no batch, no random number, no weight."""
    callback = auto()
    _, module = fit(callback, callbacks=[StopAfterTwoEpochs()])
    _, plain = fit(None, Softmax(), callbacks=[StopAfterTwoEpochs()])
    assert [decided.kind for decided in callback.report.decisions] == ["look"]
    assert same(module, plain)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_training_too_short_to_gain_anything_is_left_alone(epochs, driven):
    callback = auto()
    _, module = fit(callback, epochs=epochs)
    _, plain = fit(None, Softmax(), epochs=epochs)
    assert not driven
    assert callback.report.decisions == ()
    assert same(module, plain)


@pytest.mark.parametrize("epochs", [4, 5])
def test_a_look_that_takes_three_epochs_needs_two_more(epochs, driven):
    fit(auto(), epochs=epochs, accumulate_grad_batches=6)  # 17 steps: the look begins with the fifth and has 47
    assert bool(driven) == (epochs == 5)


SHORT = {"accumulate_grad_batches": 6}
"""Epochs of 17 steps: a look begins with the fifth step of the first epoch, and ends with the third epoch at the earliest."""


def test_the_last_epoch_of_a_look_fills_the_table():
    callback, epochs = auto(), Epochs()
    fit(callback, epochs=7, callbacks=[epochs], **SHORT)
    decided = [(decided.kind, decided.epoch, decided.step) for decided in callback.report.decisions]
    assert decided == [("look", 3, 3 * 17), ("carry", 6, 3 * 17 + JUDGED)]
    assert callback.report.decisions[0].reason.endswith("% of the gradient noise: the next steps judge them")
    assert [probes for probes, _ in epochs.seen] == [0, 0, 0, 4, 4, 4, 4]
    assert callback.report.forward_evaluations == 7 * STEPS


class StopAfterThreeEpochs(L.Callback):
    def on_train_epoch_end(self, fit, module):
        fit.should_stop = fit.current_epoch == 2


@pytest.mark.parametrize(("fresh", "callbacks"), [(0.0, [StopAfterThreeEpochs()]), (3.0, [])])
def test_looks_that_fill_tables_which_are_not_used_are_plain_lightning_bit_for_bit(fresh, callbacks):
    callback = auto()
    _, module = fit(callback, VAMOSoftmax(fresh), epochs=14, callbacks=callbacks, **SHORT)
    _, plain = fit(None, Softmax(fresh), epochs=14, callbacks=callbacks, **SHORT)
    assert callback.report.steps == 0
    assert len(callback.report.decisions) == (0 if callbacks else 3)
    assert same(module, plain)


@pytest.mark.parametrize("maximum", [4, 16])
@pytest.mark.parametrize("accumulated", [1, 2, 3, 4, 5, 6, 8, 20])
def test_a_look_ends_with_an_epoch_which_fills_the_table_if_it_is_not_the_first(maximum, accumulated):
    callback = auto(maximum)
    steps = -(-STEPS // accumulated)
    fit(callback, epochs=3 + 64 // steps + 64 // steps, accumulate_grad_batches=accumulated)
    first = callback.report.decisions[0]
    assert first.step % steps == 0
    assert first.reason.endswith("the next steps judge them" if first.epoch > 1 else "an epoch fills their table")


@pytest.mark.parametrize("options", [{"max_steps": 300}, {"max_epochs": -1, "max_steps": 300}])
def test_a_stream_without_a_length_has_looks(options):
    stream = Stream(data())
    run = trainer(callbacks=[callback := VAMOCallback(seed=1)], **{"max_epochs": None, **options})
    run.fit(VAMOSoftmax(), DataLoader(stream, 16))
    assert run.global_step == 300
    assert callback.report.forward_evaluations >= 300


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


@pytest.mark.parametrize(("work", "judged"), [(1.01, True), (1.1, False)])
def test_rows_that_a_look_has_filled_are_judged_although_the_loss_falls_fast_where_that_is_cheap(
    work, judged, falls, monkeypatch
):
    falls(*[0.2] * 8)
    monkeypatch.setattr(StepTimes, "work", lambda self, name, *, steady: work)
    callback = VAMOCallback(probes=EfficientProbes(4, 1, cost="seconds"), seed=1)
    fit(callback, epochs=8, **SHORT)  # the judgement takes three quarters of the steps that are left
    decided = [(decided.kind, decided.step) for decided in callback.report.decisions]
    last = ("nothing", 3 * 17 + JUDGED if judged else 3 * 17)
    assert decided == ([("look", 3 * 17), last] if judged else [last])
    assert callback.report.decisions[-1].reason.endswith("but noise does not limit yet: the loss falls by 20 % an epoch")


def test_a_table_that_a_look_fills_after_nothing_was_chosen_has_all_directions(monkeypatch):
    filled, filling = [], chosen.Chosen._filling

    def counted(self, here):
        snapshot = filling(self, here)
        filled.append(None if snapshot is None else snapshot.count)
        return snapshot

    monkeypatch.setattr(chosen.Chosen, "_filling", counted)
    callback = auto()
    fit(callback, VAMOSoftmax(fresh=3.0), epochs=20, **SHORT)
    assert callback.report.decisions[-1].kind == "nothing"
    assert filled.count(4) > 1
    assert set(filled) == {None, 4}


@pytest.mark.parametrize("epochs", [7, 8, 9])
def test_an_end_by_steps_is_told_of_as_that_by_epochs(epochs, caplog):
    told = []
    for end in ({"epochs": epochs}, {"epochs": 100, "max_steps": 17 * epochs}):
        caplog.clear()
        with caplog.at_level("INFO"):
            fit(auto(), VAMOSoftmax(fresh=3.0), **SHORT, **end)
        told.append(said_by(caplog))
    assert told[0] == told[1]
    assert told[0]


class Thaws(L.Callback):
    """Lets the bias train from the epoch on that begins when a look has filled a table."""

    def setup(self, fit, module, stage):
        module.net.bias.requires_grad_(False)

    def on_train_epoch_start(self, fit, module):
        module.net.bias.requires_grad_(fit.current_epoch >= 3)


def test_a_look_that_begins_where_other_weights_train_ends_with_an_epoch():
    callback, module = auto(), VAMOSoftmax()
    run = trainer(callbacks=[Thaws(), callback], max_epochs=9, **SHORT)
    run.fit(module, DataLoader(data(), 16, shuffle=True))
    assert [(decided.kind, decided.step) for decided in callback.report.decisions] == [("look", 6 * 17)]
    assert callback.report.decisions[0].reason.endswith("the next steps judge them")


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(
    ("fresh", "every", "steps", "epochs", "kinds"),
    [
        (0.0, 45, (45, 90), 8, ["look", "carry"]),
        (0.0, 17, (34, 51), 8, ["look", "carry"]),  # at the ends of epochs, before the decision too
        (3.0, 17, (51, 119), 14, ["nothing"] * 3),
        (3.0, 35, (35, 105), 14, ["nothing"] * 3),  # while the second look fills a table, although nothing has been chosen
    ],
)
def test_a_run_resumed_in_a_look_that_fills_a_table_trains_as_the_whole_one(fresh, every, steps, epochs, kinds, tmp_path):
    whole, resumed, alike = train_and_resume(tmp_path, steps, fresh, every, epochs=epochs, **SHORT)
    assert [decided.kind for decided in whole.decisions] == kinds
    assert resumed.decisions == whole.decisions
    assert alike


def test_steps_of_a_part_of_an_epoch_s_batches_count(driven):
    fit(auto(), epochs=45, accumulate_grad_batches=3, limit_train_batches=4)  # two steps an epoch, of three batches and of one
    assert driven


def test_without_learning_there_is_a_choice_only_where_a_snapshot_is_due(monkeypatch):
    epochs, decide = [], choice.Choice.decide

    def decided(self, fit, *arguments, **options):
        epochs.append(fit.current_epoch)
        return decide(self, fit, *arguments, **options)

    monkeypatch.setattr(choice.Choice, "decide", decided)
    probes = EfficientProbes(2, 2, cost="evaluations")
    fit(VAMOCallback(probes=probes, directions=SphereDirections(), control=Replay(every_n_epochs=3), seed=1), epochs=8)
    assert epochs == [0, 3, 6]


class Counting(VAMOSoftmax):
    """Keeps the number of optimizer steps that ``training_step`` reads."""

    def __init__(self):
        super().__init__()
        self.read = []

    def training_step(self, batch, batch_idx):
        self.read.append(self.global_step)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("profiler", [None, "simple"])  # with a profiler, as on several ranks, Lightning's own loop runs a step
def test_a_step_reads_how_many_there_were_whoever_took_them(profiler, driven):
    module = Counting()
    fit(auto(), module, epochs=6, accumulate_grad_batches=2, profiler=profiler)
    assert 0 < len(set(driven)) < 6 * STEPS
    assert module.read == [batch // 2 for batch in range(6 * STEPS)]


def test_accumulated_batches_are_corrected_together(driven):
    callback = auto()
    fit(callback, epochs=8, accumulate_grad_batches=2)
    assert callback.report.decisions[-1].kind == "carry"
    assert callback.report.steps > STEPS
    # An optimizer step is plain, or driven, as a whole.
    assert [batch + 1 for batch in driven[::2]] == driven[1::2]


class Dies(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, fit, *arguments):
        if fit.global_step == self.step:
            raise resuming.Killed


def train_and_resume(folder, steps, fresh=0.0, every=45, **options):
    """A whole run, and the same one interrupted and resumed at each of some steps in turn."""
    options = {"epochs": 5, **options}

    def run(dies=None, ckpt=None):
        callback, module = auto(retry_after=1), VAMOSoftmax(fresh)
        saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=every)
        fit(callback, module, callbacks=[saver, Dies(dies)], ckpt=ckpt, enable_checkpointing=True, **options)
        return callback, module

    callback, module = auto(retry_after=1), VAMOSoftmax(fresh)
    fit(callback, module, **options)
    checkpoint = None
    for step in steps:
        with pytest.raises(resuming.Killed):
            run(step + 4, checkpoint)
        checkpoint = folder / f"step={step}.ckpt"
    resumed, other = run(ckpt=checkpoint)
    return callback.report, resumed.report, same(module, other)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("fresh", [0.0, 1.0])
def test_a_resumed_run_chooses_and_trains_as_the_whole_one(fresh, tmp_path):
    # In a plain part, a burst, a table that fills, rows that are judged, and rows that are used; or where they are given up,
    # before which the noise makes no difference.
    steps = (225, 315) if fresh else (45, 90, 135, 225, 315)
    whole, resumed, alike = train_and_resume(tmp_path, steps, fresh)
    assert resumed.decisions == whole.decisions
    assert alike


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(("probes", "kind"), [(0, "nothing"), (2, "sweep")])
def test_a_choice_within_an_epoch_that_was_resumed_has_its_batches_in_their_order(probes, kind, tmp_path, monkeypatch):
    best = EfficientProbes._best
    # At the judgement, at step 264, which a run resumed at step 225 reaches in the same epoch.
    monkeypatch.setattr(EfficientProbes, "_best", lambda self, *given: probes if self.kind == "look" else best(self, *given))
    monkeypatch.setattr(EfficientProbes, "_rises", lambda self, carried: False)
    whole, resumed, alike = train_and_resume(tmp_path, (225, 270))
    assert (whole.decisions[1].step, whole.decisions[1].kind) == (264, kind)
    assert resumed.rows_unused == whole.rows_unused == 0
    assert resumed.decisions == whole.decisions
    assert alike


class Keep(L.Callback):
    def __init__(self, folder, callback):
        self.folder, self.callback = folder, callback

    def on_train_end(self, fit, module):
        decided = [(one.kind, one.step, one.removed) for one in self.callback.report.decisions]
        torch.save({"decided": decided, "state": module.state_dict()}, self.folder / f"{fit.global_rank}.pt")


def test_ranks_decide_alike(tmp_path):
    callback = auto()
    fit(callback, callbacks=[Keep(tmp_path, callback)], strategy=DDPStrategy(start_method="fork"), devices=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert [kind for kind, _, _ in first["decided"]][:2] == ["look", "carry"]
    assert first["decided"] == second["decided"]
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])


def test_rows_that_a_new_loader_makes_useless_are_given_up(caplog):
    with caplog.at_level("INFO"):
        callback = auto()
        fit(callback, Reloading(), epochs=8, reload_dataloaders_every_n_epochs=4)
    assert [decided.kind for decided in callback.report.decisions][:3] == ["look", "carry", "nothing"]
    assert "the carried rows are lost, as the training batches" in " ".join(record.message for record in caplog.records)


def kinds(callback):
    return [decided.kind for decided in callback.report.decisions]


class Endless:
    """A sampler that draws at random, and has no length."""

    shuffle = True

    def __iter__(self):
        while True:
            yield int(torch.randint(16 * STEPS, ()))


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({"limit_train_batches": 0.8}, {}),
        ({}, {"replacement": True}),
        ({}, {"num_samples": 16 * 80}),
        ({}, {"batch_size": 70, "drop_last": True}),
        ({"limit_train_batches": 60}, {"sampler": Endless()}),
        ({"reload_dataloaders_every_n_epochs": 1}, {}),
        ({"reload_dataloaders_every_n_epochs": 2}, {}),
    ],
)
def test_rows_are_not_carried_where_that_would_keep_data_from_the_training_or_they_would_not_last(options, samples):
    callback, module = auto(), Reloading(**samples)
    fit(callback, module, epochs=12 if "batch_size" in samples else 4, **options)
    assert set(kinds(callback)) <= {"nothing", "sweep"}
    assert len(callback.report.decisions) > 0


def test_rows_are_carried_in_sequence_wherever_the_trainer_limits_an_epoch():
    callback = auto()
    fit(callback, Reloading(shuffle=False), epochs=4, limit_train_batches=80)
    assert "look" in kinds(callback)


class Thaw(L.Callback):
    """Lets the bias train from an epoch on."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_fit_start(self, fit, module):
        module.net.bias.requires_grad_(False)

    def on_train_epoch_start(self, fit, module):
        module.net.bias.requires_grad_(fit.current_epoch >= self.epoch)


@pytest.mark.parametrize("batches", [1, 4])  # whose epochs have 100 steps, or 25, so that a look takes some epochs
@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5, 6])
def test_rows_are_given_up_and_directions_learned_anew_where_other_weights_train(epoch, batches):
    callback = auto()
    fit(callback, epochs=12, callbacks=[Thaw(epoch)], accumulate_grad_batches=batches)
    reasons = [decided.reason for decided in callback.report.decisions]
    lost = [index for index, reason in enumerate(reasons) if "other weights train" in reason]
    assert len(lost) <= 1
    for index in lost:
        assert callback.report.decisions[index].epoch == epoch
        assert kinds(callback)[index - 1] in ("look", "carry")
        assert kinds(callback)[index + 1 :][:2] == ["look", "carry"]
    assert kinds(callback)[-1] == "carry"
    assert lost or epoch <= (1 if batches == 1 else 3)


def test_the_fall_of_the_loss_is_that_of_whole_losses_however_many_batches_a_step_has(monkeypatch):
    falls, fall = [], EpochLosses.fall
    monkeypatch.setattr(EpochLosses, "fall", lambda self: falls.append(fall(self)) or falls[-1])
    fit(auto(), epochs=5, callbacks=[GradientAccumulationScheduler({0: 1, 1: 4, 2: 2})])
    known = [each for each in falls if each is not None]
    assert len(known) > 1
    assert all(0 < each < 0.6 for each in known)


class Looks(L.Callback):
    """Keeps the epochs in which a look begins."""

    def __init__(self, callback):
        self.callback, self.epochs = callback, []

    def on_train_batch_end(self, fit, module, outputs, batch, batch_idx):
        if batch_idx == 0 and self.callback._run.choice.stage == "look":
            self.epochs.append(fit.current_epoch)


@pytest.mark.parametrize("ends", ["max_epochs", "max_steps"])
@pytest.mark.parametrize("judged", [True, False])  # whether the rows are given up within an epoch
@pytest.mark.parametrize("epochs", [6, 7, 8, 12])
def test_a_look_is_promised_where_it_comes_and_only_there(epochs, judged, ends, caplog, monkeypatch):
    best = EfficientProbes._best
    monkeypatch.setattr(
        EfficientProbes, "_best", lambda self, *given: best(self, *given) if judged and self.kind == "nothing" else 0
    )
    monkeypatch.setattr(EfficientProbes, "_rises", lambda self, carried: False)
    limits = {"epochs": epochs} if ends == "max_epochs" else {"epochs": -1, "max_steps": STEPS * epochs}
    callback = auto(retry_after=3)
    with caplog.at_level("INFO"):
        fit(callback, callbacks=[looks := Looks(callback)], **limits)
    said = " ".join(record.message for record in caplog.records)
    promised = [int(epoch) for epoch in re.findall(r"next look at epoch (\d+)", said)]
    assert looks.epochs == [0, *promised]
    assert "too few epochs left for a look" in said or judged


def test_the_state_of_another_version_s_choice_is_refused():
    callback = auto()
    state = {"seed": 1, "totals": callback._run.ledger.state_dict(), "choice": {"stage": "rest"}, "ranks": []}
    callback._loads = True
    with pytest.raises(InvalidArgumentError, match="another version of lightning_vamo saved it"):
        callback.load_state_dict(state)


def test_random_directions_have_no_looks(caplog):
    with caplog.at_level("INFO"):
        fit(auto(directions=SphereDirections()), epochs=3)
    said = " ".join(record.message for record in caplog.records)
    assert "gradient noise" in said
    assert "look" not in said


def test_rows_whose_directions_turn_rarely_are_judged_as_soon_as_others():
    callback = auto(control=Carry(turn_every_n_epochs=5))
    fit(callback, epochs=6)
    assert [(decided.kind, decided.step) for decided in callback.report.decisions] == [("look", 100), ("carry", 264)]


def test_directions_that_turn_rarely_do_not_turn_while_they_are_judged(monkeypatch):
    turned, turn = [], chosen.turn
    monkeypatch.setattr(chosen, "turn", lambda here: turned.append(here.trainer.current_epoch) or turn(here))
    fit(auto(control=Carry(turn_every_n_epochs=5)), epochs=17, accumulate_grad_batches=4)
    assert len(turned) > 3
    assert all(epoch % 5 == 0 for epoch in turned[1:])


def test_a_run_that_dies_in_a_sweep_does_not_decide_again(tmp_path, monkeypatch):
    best, measure = EfficientProbes._best, replayed.measure
    monkeypatch.setattr(EfficientProbes, "_best", lambda self, *given: 2 if self.kind == "look" else best(self, *given))
    whole, module = auto(), VAMOSoftmax()
    fit(whole, module, epochs=4)
    assert kinds(whole)[:2] == ["look", "sweep"]

    def dies(here, *arguments):
        measure(here, *arguments)
        here.trainer.save_checkpoint(tmp_path / "swept.ckpt")
        raise resuming.Killed

    monkeypatch.setattr(replayed, "measure", dies)
    with pytest.raises(resuming.Killed):
        fit(auto(), epochs=4)
    monkeypatch.setattr(replayed, "measure", measure)
    resumed, other = auto(), VAMOSoftmax()
    fit(resumed, other, epochs=4, ckpt=tmp_path / "swept.ckpt")
    assert resumed.report.decisions == whole.report.decisions
    assert same(module, other)


class Reloading(VAMOSoftmax):
    """Makes its own loader, shuffled with the given options of the sampler."""

    def __init__(self, shuffle=True, batch_size=16, drop_last=False, sampler=None, **options):
        super().__init__()
        self.loader = {"batch_size": batch_size, "drop_last": drop_last}
        self.shuffle, self.sampler, self.options = shuffle, sampler, options

    def train_dataloader(self):
        sampler = self.sampler or (RandomSampler(data(), **self.options) if self.shuffle else None)
        return DataLoader(data(), sampler=sampler, **self.loader)


def test_only_what_the_user_allows_is_chosen():
    carried, swept = auto(control="carry"), auto(control="replay")
    fit(carried)
    fit(swept, epochs=4)
    assert {decided.kind for decided in carried.report.decisions} == {"look", "carry"}
    kinds = {decided.kind for decided in swept.report.decisions}
    assert kinds
    assert kinds <= {"nothing", "sweep"}


def test_costs_are_counted_in_seconds_or_evaluations():
    with pytest.raises(InvalidArgumentError, match='`cost` must be "evaluations", "seconds" or None, got \'minutes\''):
        EfficientProbes(cost="minutes")


@pytest.mark.parametrize(("epochs", "warmup", "snapshots"), [(2, 0, 1), (1, 64, 1)])
def test_by_default_there_is_a_warm_up_only_where_no_long_first_epoch_teaches(epochs, warmup, snapshots):
    callback = VAMOCallback(probes=2, seed=1)
    fit(callback, epochs=epochs)
    assert (callback.report.warmup_evaluations, callback.report.snapshots) == (warmup, snapshots)


def test_times_of_steps_are_kept_apart_by_what_corrected_them(monkeypatch):
    now = iter([*range(0, 40, 2), *range(100, 160, 3)])
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    times = StepTimes()
    for _ in range(20):
        times.batch_starts("plain")
    times.stop()  # a sweep, or a validation
    for _ in range(9):
        times.batch_starts("carry")
    assert (times.typical("plain"), times.typical("carry"), times.typical("sweep")) == (2.0, 3.0, None)
    assert times.steady("plain")
    assert not times.steady("sweep")
    assert not StepTimes({"plain": [1.0] * 8 + [2.0] * 8}).steady("plain")
    assert StepTimes(**times.state_dict()).typical("plain") == 2.0
    assert times.longer("carry") is None


def test_a_step_is_compared_with_itself_without_its_correction(monkeypatch):
    machine = [1.0] * 12 + [2.0] * 12  # whose speed changes
    now = iter([0.0, *itertools.accumulate(10 * slow for slow in machine)])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    times = StepTimes()
    times.batch_starts("carry")
    for slow in machine:
        times.spend(1.5 * slow)
        times.spend(1.0 * slow)
        times.batch_starts("carry")
    assert times.longer("carry") == pytest.approx(10 / 7.5)
    times.spent["carry"] = [0.0, 0.0, 0.0, 5.0] * 8  # of four batches that accumulate, the last corrects
    times.seconds["carry"] = [2.0, 2.0, 2.0, 7.0] * 8
    assert times.longer("carry") == pytest.approx(13 / 8)
    assert times.longer("plain") is None
    assert StepTimes(**times.state_dict()).longer("carry") == times.longer("carry")


@pytest.mark.parametrize(
    ("plain", "steady", "work"),
    [
        (1.0, True, 1.4),  # of corrected steps of 1.4, of which 0.4 are spent on learning and correcting
        (1.1, True, 1.4 / 1.1),
        (1.4, True, 1.2),  # the machine was slower
        (1.4, False, 1.4),
        (0.9, True, 1.4),
    ],
)
def test_plain_steps_by_a_steady_clock_tell_what_a_correction_adds_within_limits(plain, steady, work):
    times = StepTimes({"plain": [plain] * 8, "carry": [1.4] * 8}, {"plain": [0.0] * 8, "carry": [0.4] * 8})
    assert times.work("carry", steady=steady) == pytest.approx(work)


def test_without_times_of_corrections_plain_steps_tell_what_they_add():
    times = StepTimes({"plain": [1.0] * 8, "carry": [1.3] * 8}, {"plain": [0.0] * 8, "carry": [0.0] * 8})
    assert [times.work(name, steady=False) for name in ("carry", "sweep")] == pytest.approx([1.3, 1.0])


@pytest.mark.parametrize(
    ("epochs", "fall"),
    [
        ([2.0], None),
        ([2.0, 1.0], 0.5),
        ([2.0, 1.5, 1.0], 0.25),  # the mean of two
        ([4.0, 2.0, 1.5, 1.0], 0.25),
        ([1.0, 2.0], -1.0),
        ([math.inf, 1.0], None),
        ([1.0, math.nan, 1.0], 0.0),  # it begins and ends with finite losses
        ([1.0, math.inf], None),
        ([0.0, 1.0], None),
    ],
)
def test_the_fall_of_the_loss(epochs, fall):
    losses = EpochLosses()
    for epoch, loss in enumerate([*epochs, 0.5]):  # of the present epoch, which does not count
        losses.begin_epoch(epoch)
        for _ in range(3):
            losses.add({"loss": torch.tensor(loss)})
    assert losses.fall() == fall


@pytest.mark.parametrize(
    ("counts", "fall"),
    [
        ([3, 4, 4], 0.375),  # means are compared, and not sums
        ([2, 4, 4, 4], 0.375),  # the first epoch is a part of one
        ([4, 4, 2], None),
        ([1, 4], None),
        ([0, 4, 4], 0.5),
    ],
)
def test_the_fall_of_the_loss_over_epochs_of_different_lengths(counts, fall):
    losses = EpochLosses()
    for epoch, count in enumerate([*counts, 1]):
        losses.begin_epoch(epoch + 7)
        for _ in range(count):
            losses.add({"loss": torch.tensor(0.5**epoch)})
    assert losses.fall() == fall


def test_each_loss_counts_times_the_batches_that_its_step_accumulated_whatever_becomes_of_it_later():
    losses = EpochLosses()
    for epoch, batches in enumerate([(1, 1, 4, 4), (2, 2, 2, 2), (1,)]):
        losses.begin_epoch(epoch)
        for losses.accumulated in batches:
            loss = torch.tensor((2.0 - epoch) / losses.accumulated)
            losses.add({"loss": loss})
            loss *= 7  # as another callback may do
    assert losses.fall() == 0.5


def test_it_is_early_while_a_fall_may_be_known_soon_wherever_the_training_began():
    losses, early = EpochLosses(), []
    for epoch in (5, 6, 6, 7, 8):  # the seventh is resumed
        losses.begin_epoch(epoch)
        early.append(losses.early)
    assert early == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"alpha": "theory"}, "`alpha` must be 'adaptive' .* got 'theory'"),
        (
            {"directions": SphereDirections()},
            r"`probes` must be a number or a schedule with directions=SphereDirections\(\.\.\.\)",
        ),
    ],
)
def test_arguments_with_which_nothing_could_be_chosen_are_refused(arguments, named):
    with pytest.raises(InvalidArgumentError, match=f"{named}.* set a number, such as probes=1"):
        VAMOCallback(**arguments)
