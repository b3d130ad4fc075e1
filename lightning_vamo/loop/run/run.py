"""What a fit trains with, and what it has come to."""

from lightning_vamo.loop.control.probe_count import ProbeChoice
from lightning_vamo.loop.control.settings import VAMOSettings
from lightning_vamo.loop.ledger.advice import Advice
from lightning_vamo.loop.ledger.ledger import Ledger
from lightning_vamo.loop.plan.fingerprint import BatchWatch
from lightning_vamo.loop.run.standing import Standing


class Run:
    """One fit, on one rank.

    Args:
        settings: What it trains with.

    Attributes:
        settings: As given.
        ledger: What its probes cost and were worth.
        standing: Its snapshot, and how far the epoch has come in the snapshot's batches.
        choice: What chooses the number of probes by measurement; None if that is fixed beforehand.
        watch: Tells batches that are other ones than the sweep saw.
        advice: What it has warned of.
    """

    def __init__(self, settings: VAMOSettings) -> None:
        self.settings = settings
        self.ledger = Ledger()
        self.standing = Standing()
        self.choice = ProbeChoice.of(settings.schedule)
        self.watch = BatchWatch()
        self.advice = Advice()
