import pytest

from lightning_vamo.core.schedules import ConstantProbes, ExponentialProbes, LinearProbes, ProbeSchedule, as_schedule
from lightning_vamo.errors import InvalidArgumentError


def first(schedule, epochs):
    return [schedule.probes_at(epoch) for epoch in range(epochs)]


@pytest.mark.parametrize("n", [0, 1, 16])
def test_constant(n):
    assert first(ConstantProbes(n), 4) == [n] * 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 8, 5), [0, 2, 4, 6, 8, 8, 8]),
        ((8, 0, 5), [8, 6, 4, 2, 0, 0, 0]),
        ((1, 4, 3), [1, 2, 4, 4]),
        ((3, 7, 1), [7, 7]),
        ((3, 7, 2), [3, 7, 7]),
        ((5, 5, 10), [5] * 12),
    ],
)
def test_linear_goes_from_start_to_end_in_equal_steps_and_stays(arguments, expected):
    assert first(LinearProbes(*arguments), len(expected)) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, 2.0, 1, 100), [1, 2, 4, 8, 16, 32, 64, 100, 100]),
        ((1, 2.0, 3, 4), [1, 1, 1, 2, 2, 2, 4, 4, 4, 4]),
        ((2, 1.5, 1, 10), [2, 3, 4, 7, 10, 10]),  # 2, 3, 4.5, 6.75, 10.125
        ((16, 0.5, 2, 16), [16, 16, 8, 8, 4, 4, 2, 2, 1, 1, 0, 0, 0]),
        ((3, 1, 1, 8), [3, 3, 3]),
        ((0, 2.0, 1, 8), [0, 0, 0]),
        ((9, 2.0, 1, 4), [4, 4]),
        ((4, 2.0, 1, 0), [0, 0]),
    ],
)
def test_exponential_multiplies_every_so_many_epochs_up_to_the_maximum(arguments, expected):
    assert first(ExponentialProbes(*arguments), len(expected)) == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ConstantProbes(3), 3),
        (LinearProbes(0, 8, 5), 8),
        (ExponentialProbes(1, 2.0, 1, 64), 64),
        (ExponentialProbes(1, 1e300, 1, 64), 64),
        (ExponentialProbes(64, 0.5, 1, 64), 0),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("epoch", [10**4, 10**9, 10**18])
def test_a_late_epoch_neither_overflows_nor_takes_for_ever(schedule, expected, epoch):
    """A loop over that many epochs would not end."""
    assert schedule.probes_at(epoch) == expected


@pytest.mark.parametrize("schedule", [LinearProbes(0, 100, 37), ExponentialProbes(1, 1.1, 1, 100)])
def test_a_growing_schedule_never_falls_and_gives_whole_numbers(schedule):
    probes = first(schedule, 200)
    assert probes == sorted(probes)
    assert all(type(q) is int for q in probes)
    assert probes[-1] == 100


def test_a_number_becomes_a_constant_schedule():
    assert first(as_schedule(4), 3) == [4, 4, 4]
    assert first(as_schedule(0), 3) == [0, 0, 0]


@pytest.mark.parametrize("schedule", [ConstantProbes(1), LinearProbes(0, 1, 1), ExponentialProbes(1, 2.0, 1, 4)])
def test_a_schedule_stays_what_it_is(schedule):
    assert as_schedule(schedule) is schedule
    assert isinstance(schedule, ProbeSchedule)


def test_a_users_own_class_is_a_schedule_without_inheriting_from_anything():
    class EveryOtherEpoch:
        def probes_at(self, epoch):
            return 4 * (epoch % 2)

    schedule = EveryOtherEpoch()
    assert isinstance(schedule, ProbeSchedule)
    assert first(as_schedule(schedule), 4) == [0, 4, 0, 4]


@pytest.mark.parametrize("probes", [-1, 2.5, True, None, "4", "atuo", [4], lambda epoch: 4])
def test_probes_that_are_neither_a_number_nor_a_schedule_are_refused(probes):
    with pytest.raises(
        InvalidArgumentError, match=r"`probes` must be a whole number >= 0, 'auto' or a schedule such as .*, got "
    ) as error:
        as_schedule(probes)
    assert repr(probes).partition(" at 0x")[0] in str(error.value)
    assert "0x" not in str(error.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConstantProbes(-1), "`n` must be a whole number >= 0, got -1"),
        (lambda: ConstantProbes(1.5), "`n` must be a whole number >= 0, got 1.5"),
        (lambda: LinearProbes(-2, 8, 5), "`start` must be a whole number >= 0, got -2"),
        (lambda: LinearProbes(0, "8", 5), "`end` must be a whole number >= 0, got '8'"),
        (lambda: LinearProbes(0, 8, 0), "`epochs` must be a whole number >= 1, got 0"),
        (lambda: ExponentialProbes(-1, 2.0, 1, 8), "`start` must be a whole number >= 0, got -1"),
        (lambda: ExponentialProbes(1, 0.0, 1, 8), "`factor` must be a positive, finite number, got 0.0"),
        (lambda: ExponentialProbes(1, -2, 1, 8), "`factor` must be a positive, finite number, got -2"),
        (lambda: ExponentialProbes(1, float("inf"), 1, 8), "`factor` must be a positive, finite number, got inf"),
        (lambda: ExponentialProbes(1, float("nan"), 1, 8), "`factor` must be a positive, finite number, got nan"),
        (lambda: ExponentialProbes(1, "2", 1, 8), "`factor` must be a positive, finite number, got '2'"),
        (lambda: ExponentialProbes(1, True, 1, 8), "`factor` must be a positive, finite number, got True"),
        (lambda: ExponentialProbes(1, 2.0, 0, 8), "`every_n_epochs` must be a whole number >= 1, got 0"),
        (lambda: ExponentialProbes(1, 2.0, 1, -8), "`maximum` must be a whole number >= 0, got -8"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name_and_value(build, message):
    with pytest.raises(InvalidArgumentError) as error:
        build()
    assert message in str(error.value)


def test_a_shrinking_schedule_shrinks_from_above_its_maximum_too():
    schedule = ExponentialProbes(start=100, factor=0.5, every_n_epochs=1, maximum=10)
    assert [schedule.probes_at(epoch) for epoch in range(9)] == [10, 10, 10, 10, 6, 3, 2, 1, 0]


def test_a_class_is_not_a_schedule():
    with pytest.raises(InvalidArgumentError, match="`probes`"):
        as_schedule(ConstantProbes)
