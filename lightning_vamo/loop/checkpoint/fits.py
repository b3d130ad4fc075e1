"""Check that a checkpoint fits the run that resumes from it: each difference is refused before anything changes."""

from typing import Any

from lightning.pytorch import Trainer

from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.loop.checkpoint.state import RankState, data_of, parameters_of
from lightning_vamo.loop.control.drawn import chosen_count
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.run.run import Run


def check_fits(name: str, then: object, now: object) -> None:
    """Refuse a checkpoint if one of its values differs from the value in the present run.

    Args:
        name: Name of the value, for the message.
        then: The value when the checkpoint was saved.
        now: The value in the present run.

    Raises:
        InvalidArgumentError: If the values differ.
    """
    if then != now:
        raise InvalidArgumentError(
            f"The checkpoint does not fit the present run: {name} was {then}, and in the present run it is {now}. Resume with"
            " the settings, the module and the data of the run that saved the checkpoint, or from a checkpoint after which a"
            " new snapshot is due, such as one from the end of an epoch, unless `control` keeps rows for several epochs."
        )


def check_snapshot(trainer: Trainer, run: Run, state: RankState) -> None:
    """Refuse a snapshot whose rows do not fit the present run.

    Args:
        trainer: The trainer.
        run: The present run.
        state: The checkpoint's state of this rank, with a snapshot.

    Raises:
        InvalidArgumentError: If the rows do not fit.
    """
    snapshot, settings, control = state.snapshot, run.method.settings, run.method.control
    assert snapshot is not None
    if snapshot["kind"] not in control.kinds:
        check_fits("`control`", repr(snapshot["kind"]), " or ".join(map(repr, control.kinds)) or "none")
    check_data(trainer, state)
    dimension = sum(parameter.numel() for parameter in trainable_parameters(trainer.optimizers))
    check_fits("the number of trainable parameters", snapshot["dimension"], dimension)
    if control.made_of == "probes":
        check_fits("the family of directions", snapshot["directions"], type(settings.directions).__name__)
        own = settings.schedule.probes_at(snapshot["epoch"]) if run.choice is None else chosen_count(run.choice, dimension)
        check_fits("the number of probes", snapshot["probes"], own)
    check_parameters(trainer, state)
    if state.position is not None and "group" in snapshot["rows"]:
        check_fits("the number of accumulated batches", snapshot["rows"]["group"], trainer.accumulate_grad_batches)


def check_data(trainer: Trainer, state: RankState) -> None:
    """Refuse a plan of batches that does not fit the data of the present run.

    Args:
        trainer: The trainer.
        state: The checkpoint's state of this rank.

    Raises:
        InvalidArgumentError: If the number of batches, of samples, or of samples in a batch differs.
    """
    if state.plan is None:
        return
    check_fits("the number of batches per epoch", state.plan["length"], trainer.num_training_batches)
    now = data_of(trainer)
    check_fits("the number of training DataLoaders", len(state.data), len(now))
    for then, present in zip(state.data, now, strict=True):
        check_fits("the number of samples of the training data", then["samples"], present["samples"])
        check_fits("the batch size", then["batch_size"], present["batch_size"])


def check_parameters(trainer: Trainer, state: RankState) -> None:
    """Refuse directions for other parameters, or for parameters in another order.

    Args:
        trainer: The trainer.
        state: The checkpoint's state of this rank.

    Raises:
        InvalidArgumentError: If the optimizer's trainable parameters are not those of the checkpoint.
    """
    then, now = [[name, list(shape)] for name, shape in state.parameters], parameters_of(trainer)
    for index, (before, present) in enumerate(zip(then, now, strict=False)):
        check_fits(f"trainable parameter {index} of the optimizer", _named(before), _named(present))
    check_fits("the number of trainable tensors", len(then), len(now))


def _named(parameter: list[Any]) -> str:
    name, shape = parameter
    return f"{name} of shape {tuple(shape)}"
