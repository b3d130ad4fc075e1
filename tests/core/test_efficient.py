"""The number of probes that a schedule chooses, where the best one is known."""

import copy
import itertools
import math

import pytest
import torch

from lightning_vamo.core.efficiency import batch_factor, efficiency, work_factor
from lightning_vamo.core.schedules import EfficientProbes, ProbeSchedule
from lightning_vamo.core.schedules.decision import Carriable, of_sweeps, surely
from lightning_vamo.errors import InvalidArgumentError

STEEP = [0.60, 0.08, 0.05, 0.02, 0.01, 0.01, 0.005, 0.005]
FLAT = [0.08] * 8
WHITE = [1e-5] * 8


def shares(spectrum):
    return torch.tensor(spectrum, dtype=torch.float64).cumsum(0)


def noise_times_work(spectrum, factors, forward, per_probe=1, sweeps=1.0):
    """What is to be least, number by number, in plain arithmetic: the noise that is left, times the time that it takes."""
    products, left = [1.0], 1.0
    for count, (share, factor) in enumerate(zip(spectrum, factors, strict=True), start=1):
        left -= factor**2 * share
        products.append(left * (1 + sweeps * forward * (1 + per_probe * count)))
    return products


@pytest.mark.parametrize("spectrum", [STEEP, FLAT, WHITE], ids=["steep", "flat", "white"])
@pytest.mark.parametrize(("difference", "per_probe"), [("forward", 1), ("central", 2)])
@pytest.mark.parametrize("sweeps", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("forward", [0.03, 0.21, 0.4])
@pytest.mark.parametrize("fading", [1.0, 0.8])
def test_it_chooses_what_leaves_least_noise_for_the_work(spectrum, difference, per_probe, sweeps, forward, fading):
    factors = [fading**j for j in range(8)]
    products = noise_times_work(spectrum, factors, forward, per_probe, sweeps)
    best = min(range(9), key=products.__getitem__)
    schedule = EfficientProbes(maximum=8)
    schedule.observe(torch.tensor(factors), forward)
    decision = schedule.decide(shares(spectrum), difference, sweeps)
    # From none to some only if it is clearly better.
    assert decision.probes == (best if products[best] * 1.05 <= 1 else 0)
    assert schedule.probes_at(17) == decision.probes
    removed = torch.tensor([f * f * s for f, s in zip(factors, spectrum, strict=True)]).cumsum(0)
    values = efficiency(removed, forward, difference, sweeps)
    assert values.tolist() == pytest.approx([1 / product for product in products], rel=1e-6)


def test_the_cases_have_different_answers():
    answers = {
        EfficientProbes(maximum=8).decide(shares(spectrum), "forward", sweeps).probes
        for spectrum, sweeps in itertools.product((STEEP, FLAT, WHITE), (1.0, 0.1, 0.0))
    }
    assert answers == {0, 3, 6, 8}


def test_worth_and_work():
    assert batch_factor(torch.tensor([0.0, 0.5, 0.75])).tolist() == [1.0, 2.0, 4.0]
    assert work_factor(3, 0.5).tolist() == [1.0, 2.0, 2.5, 3.0]
    assert work_factor(2, 0.5, "central", sweeps=0.5).tolist() == [1.0, 1.75, 2.25]


def test_directions_that_were_not_probed_do_as_well_as_the_others_on_average():
    schedule = EfficientProbes(maximum=4)
    schedule.observe(torch.tensor([1.0, 0.5]), 1e-6)
    decision = schedule.decide(shares([0.1, 0.1, 0.1, 0.1]))
    assert decision.probes == 4
    assert decision.removed == pytest.approx(0.1 * (1 + 0.25 + 2 * 0.75**2))


def test_more_measured_factors_than_directions_are_no_trouble():
    schedule = EfficientProbes(maximum=2)
    schedule.observe(torch.tensor([1.0, 1.0, 0.1]), 0.01)
    assert schedule.decide(shares([0.5, 0.1])).removed == pytest.approx(0.6)


def test_nothing_is_probed_before_the_noise_is_known():
    schedule = EfficientProbes(maximum=4)
    assert schedule.probes_at(0) == 4  # what the callback prepares for
    assert schedule.decide(None).probes == schedule.probes_at(0) == 0
    assert schedule.decide(shares([0.7, 0.01, 0.0, 0.0])).probes == 1


def test_a_noisy_clock_does_not_change_what_pays():
    schedule = EfficientProbes(maximum=2)
    spectrum = shares([0.5, 0.055])
    schedule.observe(torch.ones(2), 0.32)
    assert schedule.decide(spectrum, sweeps=0.5).probes == 2
    for forward in (0.345, 0.36, 0.35, 0.34):  # beyond 0.328 a single probe would be better, by less than 5 %
        schedule.observe(torch.ones(2), forward)
        assert schedule.decide(spectrum, sweeps=0.5).probes == 2
    for _ in range(6):
        schedule.observe(torch.ones(2), 0.6)
        last = schedule.decide(spectrum, sweeps=0.5).probes
    assert last == 1
    for _ in range(4):
        schedule.observe(torch.ones(1), 2.0)
        last = schedule.decide(spectrum, sweeps=0.5).probes
    assert last == 0


def simulate(schedule, truth, snapshots, forward=1 / 3):
    """The numbers that are chosen while the true factors are ``truth(snapshot)``."""
    chosen = []
    for snapshot in range(snapshots):
        decision = schedule.decide(shares([0.7, 0.02]))
        chosen.append(decision.probes)
        if decision.probes:
            schedule.observe(torch.full((decision.probes,), truth(snapshot)), forward)
    return chosen


def test_useless_probes_are_tried_again_ever_more_rarely():
    chosen = simulate(EfficientProbes(maximum=2, retry_after=3), lambda snapshot: 0.1, 40)
    assert [snapshot for snapshot, probes in enumerate(chosen) if probes] == [0, 4, 11, 24]


def test_probes_that_become_useful_are_found():
    chosen = simulate(EfficientProbes(maximum=2, retry_after=3), lambda snapshot: 0.1 if snapshot < 6 else 0.95, 20)
    assert chosen == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0] + [1] * 9


def test_after_a_success_the_wait_is_as_short_as_at_first():
    schedule = EfficientProbes(maximum=2, retry_after=3)
    chosen = simulate(schedule, lambda snapshot: 0.95 if 10 < snapshot < 15 else 0.1, 40)
    assert [snapshot for snapshot, probes in enumerate(chosen) if probes] == [0, 4, 11, 12, 13, 14, 15, 19, 26, 39]


def test_a_forward_pass_that_was_never_measured_is_measured_after_a_while():
    schedule = EfficientProbes(maximum=1, retry_after=3)
    assert [schedule.decide(shares([0.3])).probes for _ in range(4)] == [0, 0, 0, 1]
    schedule.observe(torch.ones(1), 0.05)
    assert schedule.decide(shares([0.3])).probes == 1
    schedule.observe(torch.ones(1), 2.0)
    assert [schedule.decide(shares([0.3])).probes for _ in range(5)] == [0, 0, 0, 1, 0]


def test_one_probe_is_enough_to_try_again():
    schedule, spectrum = EfficientProbes(maximum=8, retry_after=1), shares(FLAT)
    schedule.observe(torch.zeros(1), 0.02)
    assert schedule.decide(spectrum).probes == 0
    assert schedule.decide(spectrum).probes == 1
    schedule.observe(torch.ones(1), 0.02)
    assert schedule.decide(spectrum).probes == 8


def test_where_no_probes_could_pay_none_are_tried():
    schedule = EfficientProbes(maximum=8, retry_after=1)
    assert [schedule.decide(shares(WHITE)).probes for _ in range(20)] == [0] * 20


def test_a_decision_says_when_it_tries_again():
    schedule = EfficientProbes(maximum=1, retry_after=1)
    spectrum = shares([0.7])
    assert not schedule.decide(spectrum).afresh
    schedule.observe(torch.ones(1), 0.3)
    assert not schedule.decide(spectrum).afresh
    schedule.observe(torch.zeros(1), 0.3)
    assert schedule.decide(spectrum).probes == 0
    again = schedule.decide(spectrum)
    assert (again.probes, again.afresh) == (1, True)


def test_reasons_name_the_figures():
    schedule = EfficientProbes(maximum=2)
    assert schedule.decide(None).reason == "probes=0: the gradient noise has not been measured yet"
    assert schedule.decide(shares([0.68, 0.02])).reason == (
        "probes=1: expected to remove 68 % of the gradient noise, as a 3.13 times larger batch would, for 1.67 times the work"
        " of plain training"
    )
    schedule.observe(torch.tensor([0.1]), 0.5)
    assert schedule.decide(shares([0.5, 0.5])).reason == (
        "probes=0: the best number above 0, 1, is expected to remove 0.5 % of the gradient noise, as a 1.01 times larger batch"
        " would, for 2.00 times the work of plain training"
    )


def test_it_goes_on_from_its_state():
    def rest(schedule):
        return simulate(schedule, lambda snapshot: 0.95 if snapshot % 5 else 0.1, 20)

    for split in range(8):
        schedule = EfficientProbes(maximum=2, retry_after=2)
        simulate(schedule, lambda snapshot: 0.1, split)
        resumed = EfficientProbes(maximum=2, retry_after=2)
        resumed.load_state_dict(copy.deepcopy(schedule.state_dict()))
        assert rest(resumed) == rest(schedule)


def test_a_smaller_maximum_than_before():
    schedule = EfficientProbes(maximum=8)
    assert schedule.decide(shares(STEEP), sweeps=0.0).probes == 8
    smaller = EfficientProbes(maximum=2)
    smaller.load_state_dict(schedule.state_dict())
    assert smaller.probes_at(3) == 2
    assert smaller.decide(shares(STEEP[:2]), sweeps=0.0).probes == 2


@pytest.mark.parametrize("name", ["maximum", "retry_after"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_bad_arguments(name, value):
    with pytest.raises(InvalidArgumentError, match=f"`{name}` must be a whole number >= 1, got {value!r}"):
        EfficientProbes(**{"maximum": 4, name: value})


def test_it_is_a_schedule():
    assert isinstance(EfficientProbes(maximum=1), ProbeSchedule)


GOOD, SOME, BAD = torch.full((2,), 0.6), torch.full((2,), 0.1), torch.zeros(2)


def carried(schedule, explained, work=1.0):
    return schedule.decide(shares([0.5, 0.2]), carriable=Carriable(explained, work))


def test_rows_are_looked_at_before_they_are_carried():
    schedule = EfficientProbes(maximum=2)
    look, carry = carried(schedule, None), carried(schedule, GOOD)
    assert [one.kind for one in (look, carry)] == ["look", "carry"]
    assert look.removed == pytest.approx(0.7)
    assert carry.removed == pytest.approx(0.6 * 0.7)
    assert carry.reason == "carried rows along 2 directions remove 42 % of the gradient noise at no extra evaluation"


def test_rows_that_could_not_pay_are_not_looked_at():
    schedule = EfficientProbes(maximum=2)
    assert schedule.decide(shares([0.01, 0.01]), carriable=Carriable()).kind == "nothing"
    assert carried(EfficientProbes(maximum=2), None, work=4.0).kind == "nothing"
    assert schedule.chosen == 0


@pytest.mark.parametrize(
    ("work", "kinds"),
    [(1.0, ["carry"] * 3), (1.6, ["carry"] * 3), (1.8, ["carry", "nothing"]), (3.4, ["nothing"])],
)
def test_carried_rows_have_to_be_worth_their_time(work, kinds):
    """They leave 0.58 of the noise, which is worth a batch 1.72 times as large; perfect ones would leave 0.3."""
    schedule = EfficientProbes(maximum=2)
    carried(schedule, None)
    for kind in kinds:
        assert schedule.decide(shares([0.5, 0.2]), sweeps=None, carriable=Carriable(GOOD, work)).kind == kind


def test_rows_that_do_not_pay_are_not_kept_for_ever():
    schedule, kinds = EfficientProbes(maximum=2), []
    carried(schedule, None)
    for epoch in range(8):
        known = Carriable(torch.full((2,), 0.05 * 1.2**epoch), 1.5)
        decision = schedule.decide(shares([0.5, 0.2]), sweeps=None, carriable=known)
        kinds.append(decision.kind)
        assert ("are kept while that rises" in decision.reason) == (decision.kind == "carry")
    assert kinds == ["carry"] * 5 + ["nothing"] * 3


def test_carried_rows_are_kept_while_they_explain_more_from_epoch_to_epoch():
    schedule = EfficientProbes(maximum=2)
    carried(schedule, None)
    for explained, kind in ((0.2, "carry"), (0.3, "carry"), (0.4, "carry"), (0.41, "nothing")):
        known = Carriable(torch.full((2,), explained), 1.5)
        assert schedule.decide(shares([0.5, 0.2]), sweeps=None, carriable=known).kind == kind
        state = schedule.state_dict()
        schedule = EfficientProbes(maximum=2)
        schedule.load_state_dict(state)


def test_after_each_vain_look_the_pause_doubles():
    schedule, looks = EfficientProbes(maximum=2, retry_after=2), []
    for epoch in range(40):
        if schedule.rests():
            continue
        looks.append(epoch)
        assert carried(schedule, None).kind == "look"
        if epoch % 4 == 2:  # rows that remove something, and would pay if they were perfect, get another epoch
            assert carried(schedule, SOME, work=1.5).kind == "carry"
        assert carried(schedule, BAD).kind == "nothing"
    assert looks == [0, 2, 6, 14, 30]
    assert carried(schedule, None).kind == "look"
    assert carried(schedule, GOOD).kind == "carry"
    assert schedule.wait == 2


def test_a_sweep_has_to_beat_what_carried_rows_do_for_nothing():
    schedule = EfficientProbes(maximum=2)
    carried(schedule, None)
    spectrum = shares([0.9, 0.05])
    sweep = schedule.decide(spectrum, carriable=Carriable(torch.full((2,), 0.2)), forward=1 / 10)
    assert (sweep.kind, sweep.probes) == ("sweep", 1)
    other = EfficientProbes(maximum=2)
    carried(other, None)
    assert other.decide(spectrum, carriable=Carriable(torch.full((2,), 0.9)), forward=1 / 3).kind == "carry"


def test_a_sweep_s_rows_are_taken_to_be_half_as_old():
    whole = torch.tensor([0.0, 0.3, 0.999999], dtype=torch.float64)
    ages = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    averages = [(max(float(share), 1e-6) ** ages).mean() for share in whole]
    torch.testing.assert_close(of_sweeps(whole), torch.stack(averages), rtol=1e-3, atol=1e-3)


def test_what_was_chosen_of_carried_rows_is_saved():
    schedule = EfficientProbes(maximum=2)
    carried(schedule, None)
    resumed = EfficientProbes(maximum=2)
    resumed.load_state_dict(schedule.state_dict())
    assert (resumed.kind, resumed.chosen) == ("look", 2)
    assert carried(resumed, BAD) == carried(schedule, BAD)


def judged_at(fall, work=1.5, removed=0.6):
    schedule = EfficientProbes(maximum=2, retry_after=5)
    carried(schedule, None)
    known = Carriable(torch.full((2,), removed), work)
    return schedule, schedule.decide(shares([0.9, 0.1]), None, sweeps=None, carriable=known, fall=fall)


@pytest.mark.parametrize(
    ("fall", "work", "kind"),
    [
        (None, 1.5, "carry"),
        (0.01, 1.5, "carry"),
        (-0.2, 1.5, "carry"),
        (0.04, 1.5, "carry"),
        (0.2, 1.5, "nothing"),
        (0.059, 1.5, "carry"),
        (0.061, 1.1, "nothing"),
        (0.2, 1.0, "carry"),  # costs nothing
    ],
)
def test_time_is_paid_for_less_noise_only_where_noise_limits(fall, work, kind):
    assert judged_at(fall, work)[1].kind == kind


def test_rows_that_wait_for_the_loss_are_looked_at_as_soon_as_it_falls_slowly():
    schedule, decision = judged_at(0.2)
    assert decision.reason == (
        "carried rows remove 60 % of the gradient noise for 1.50 times the time of a step, but noise does not limit yet:"
        " the loss falls by 20 % an epoch"
    )
    assert [schedule.rests(fall) for fall in (0.2, None, 0.1)] == [True] * 3
    again = EfficientProbes(maximum=2, retry_after=5)
    again.load_state_dict(schedule.state_dict())
    assert not schedule.rests(0.04)
    assert not again.rests(0.04)


def priced(schedule, fall, work=1.5, explained=0.6, spectrum=(0.9, 0.1), sweeps=None, forward=None):
    known = Carriable(None if explained is None else torch.full((2,), explained), work)
    return schedule.decide(shares(spectrum), sweeps=sweeps, carriable=known, forward=forward, fall=fall)


@pytest.mark.parametrize("spectrum", [(0.9, 0.1), (0.5, 0.2), (0.3, 0.1), (0.1, 0.1)])
@pytest.mark.parametrize("work", [1.0, 1.1, 1.3, 1.5])
def test_the_look_that_ends_a_wait_for_the_loss_is_not_in_vain(spectrum, work):
    schedule, slow = EfficientProbes(maximum=2), EfficientProbes(maximum=2)
    kind = priced(slow, 0.05, work, None, spectrum).kind
    assert priced(schedule, 0.2, work, None, spectrum).kind == ("look" if work == 1 and kind == "look" else "nothing")
    assert schedule.waits == (kind == "look" and work > 1)
    if schedule.waits:
        assert [schedule.rests(0.07) for _ in range(20)] == [True] * 20  # longer than the pause
        assert not schedule.rests(0.05)
        assert priced(schedule, 0.05, work, None, spectrum).kind == "look"


def test_a_loss_that_falls_faster_since_noise_is_removed_is_no_reason_to_stop():
    schedule, decision = judged_at(0.01)
    assert decision.kind == "carry"
    resumed = EfficientProbes(maximum=2)
    resumed.load_state_dict(copy.deepcopy(schedule.state_dict()))
    for each in (schedule, resumed):
        assert [priced(each, fall).kind for fall in (0.2, None, 0.2, 0.2)] == ["carry"] * 4
    schedule.decide(None)
    assert priced(schedule, 0.2).kind == "nothing"  # another choice begins


def test_a_fall_at_which_rows_cost_nothing_says_nothing_of_rows_that_cost_time():
    schedule = EfficientProbes(maximum=2)
    kinds = [priced(schedule, fall, work).kind for fall, work in ((0.01, 1.0), (0.2, 1.5), (0.2, 1.5))]
    assert kinds == ["carry", "carry", "nothing"]  # after two doubts


@pytest.mark.parametrize(("fall", "kind"), [(0.01, "sweep"), (0.2, "carry")])
def test_a_sweep_is_not_bought_while_the_loss_falls_fast(fall, kind):
    schedule = EfficientProbes(maximum=2)
    priced(schedule, 0.01, 1.0, 0.2)
    kinds = [priced(schedule, fall, 1.0, 0.2, sweeps=1.0, forward=0.1).kind for _ in range(2)]
    assert kinds[-1] == kind


def test_a_sweep_is_kept_though_the_loss_falls_faster():
    schedule = EfficientProbes(maximum=2)
    assert schedule.decide(shares([0.6, 0.1]), fall=0.01).kind == "sweep"
    assert schedule.decide(shares([0.6, 0.1]), fall=0.2).kind == "sweep"
    rejected = EfficientProbes(maximum=2).decide(shares([0.6, 0.1]), fall=0.2)
    assert rejected.reason.endswith(
        "is expected to remove 70 % of the gradient noise, as a 3.33 times larger batch would, for 2.00 times the work of plain"
        " training; but noise does not limit yet: the loss falls by 20 % an epoch"
    )


def test_rows_that_take_time_wait_until_it_is_known_how_fast_the_loss_falls():
    schedule = EfficientProbes(maximum=2)
    decision = priced(schedule, math.inf, 1.5, None)
    assert decision.reason == (
        "carried rows could remove 99 % of the gradient noise for 1.50 times the time of a step, but whether noise limits is"
        " not known yet: two whole epochs tell how fast the loss falls"
    )
    assert [schedule.rests(fall) for fall in (None, 0.2, 0.01)] == [True, True, False]
    assert priced(EfficientProbes(maximum=2), math.inf, 1.0, None).kind == "look"


def test_the_first_look_waits_as_others_do_and_does_not_count_as_a_second():
    schedule = EfficientProbes(maximum=2)
    assert not schedule.rests(math.inf)  # where it does not wait
    schedule.waits = True
    assert [schedule.rests(fall) for fall in (math.inf, math.inf, 0.2, 0.07)] == [True] * 4
    resumed = EfficientProbes(maximum=2)
    resumed.load_state_dict(schedule.state_dict())
    for each in (schedule, resumed):
        assert not each.rests(0.05)
        assert (priced(each, 0.05, 1.5, None).afresh, each.wait) == (False, 5)


def test_the_first_look_does_not_wait_for_a_fall_that_nothing_tells():
    schedule = EfficientProbes(maximum=2)
    schedule.waits = True
    assert [schedule.rests(fall) for fall in (math.inf, None)] == [True, False]


@pytest.mark.parametrize(("fall", "rests"), [(0.2, True), (0.01, False), (None, False)])
def test_other_parameters_are_looked_at_unless_the_loss_falls_fast(fall, rests):
    schedule, _ = judged_at(0.2)
    assert schedule.rests(fall, others=True) == rests


def test_a_pause_after_a_vain_look_ends_where_other_parameters_train():
    schedule = EfficientProbes(maximum=2)
    assert priced(schedule, 0.01, 1.0, 0.0).kind == "nothing"
    assert schedule.rests(0.01)
    assert not schedule.rests(0.01, others=True)


def test_where_noise_limits_the_price_alone_is_the_reason():
    decision = priced(EfficientProbes(maximum=2), 0.01, 1.5, None, (0.3, 0.04))
    assert decision.reason == "carried rows could remove 34 % of the gradient noise at most for 1.50 times the time of a step"


def test_carried_rows_are_given_up_only_after_two_doubts():
    schedule, decision = judged_at(None, removed=0.5)
    kinds = []
    for removed in (0.1, 0.5, 0.1, 0.1):
        known = Carriable(torch.full((2,), removed), 1.5)
        kinds.append(schedule.decide(shares([0.9, 0.1]), None, sweeps=None, carriable=known).kind)
    assert decision.kind == "carry"
    assert kinds == ["carry", "carry", "carry", "nothing"]


def test_a_sweep_that_was_never_tried_is_counted_less_its_standard_error():
    assert surely(torch.tensor([0.0, 0.25, 1.0]), 100).tolist() == pytest.approx([0.0, 0.25 - 0.075, 1.0])
    assert surely(torch.tensor([0.001])).tolist() == [0.0]
