"""How the arguments of a callback say what a warning recommends."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ways:
    """The arguments of one method's callback, as warnings name them.

    Attributes:
        recompute: Makes each step evaluate its own batch at the snapshot.
        plain: Trains without a control variate.
        carry: Lets each step refresh the row that it used; None if the method cannot.
        anew: Makes rows that are lost with a loader anew at a snapshot; None if no rows are carried.
        its_row: What a batch has in the table, with its verb.
        ranks: Which ranks have to use the row of a batch that has changed.
        sweep_precision: Whether there is an argument of that name.
    """

    recompute: str = "control='recompute'"
    plain: str = "probes=0"
    carry: str | None = "control='carry'"
    anew: str | None = "control=Carry(sweep_every_n_epochs=...)"
    its_row: str = "its probe differences are"
    ranks: str = "sharded ranks"
    sweep_precision: bool = True


VAMO_WAYS = Ways()
"""The arguments of :class:`~lightning_vamo.VAMOCallback`."""
