"""The arguments of a callback that warnings recommend."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ways:
    """The arguments of one method's callback that warnings recommend, and words for its rows.

    Attributes:
        recompute: The argument that makes each step evaluate its own batch at the snapshot.
        plain: The argument that trains without a control variate.
        carry: The argument that lets each step refresh its row; None if the method cannot do so.
        anew: The argument that makes new rows at a snapshot after a loader was made anew; None if no rows are carried.
        its_row: The words for a batch's row, with a verb.
        ranks: The words for ranks that have to use the row of a batch that has changed.
        sweep_precision: Whether the callback has an argument ``sweep_precision``.
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
