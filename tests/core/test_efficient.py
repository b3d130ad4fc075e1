"""The number of probes that a schedule chooses, where the best one is known."""

import copy
import itertools

import pytest
import torch

from lightning_vamo.core.efficiency import batch_factor, efficiency, work_factor
from lightning_vamo.core.schedules import EfficientProbes, ProbeSchedule
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
