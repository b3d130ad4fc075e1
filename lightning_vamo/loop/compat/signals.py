"""The handlers of signals, such as that of a cluster's requeueing, which Lightning lets save a checkpoint at any moment."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer

_Handler = Callable[[int, FrameType | None], object]


class SignalGate:
    """Lets the handlers of some signals wait while a batch is trained on.

    Within a batch the weights may be those of a snapshot, or moved along a direction; a checkpoint that a handler saved would
    hold such weights.
    """

    def __init__(self) -> None:
        self._closed = False
        self._waiting: list[Callable[[], object]] = []

    def close(self) -> None:
        """Let handlers wait from now on."""
        self._closed = True

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Make a context in which handlers wait."""
        self.close()
        try:
            yield
        finally:
            self.open()

    def open(self) -> None:
        """Run the handlers that wait, and later ones at once."""
        self._closed = False
        while self._waiting:
            self._waiting.pop(0)()

    @contextmanager
    def installed(self, trainer: Trainer) -> Iterator[None]:
        """Make a context in which the gate stands before the handlers of SIGTERM, SIGUSR1, SIGUSR2 and of SLURM's signal.

        Args:
            trainer: The trainer, which has set its handlers.

        Yields:
            Nothing. In another thread than the main one nothing is done, since Python runs handlers in the main thread.
        """
        behind: dict[int, tuple[_Handler, _Handler]] = {}
        for number in _numbers(trainer) if threading.current_thread() is threading.main_thread() else ():
            handler = signal.getsignal(number)
            if callable(handler):
                behind[number] = handler, partial(self._handle, handler)
                signal.signal(number, behind[number][1])
        try:
            yield
        finally:
            for number, (handler, gate) in behind.items():
                if signal.getsignal(number) is gate:  # else the user has set another handler
                    signal.signal(number, handler)
            self.open()

    def _handle(self, handler: _Handler, number: int, frame: FrameType | None) -> None:
        if self._closed:
            self._waiting.append(partial(handler, number, frame))
        else:
            handler(number, frame)


def _numbers(trainer: Trainer) -> set[int]:
    environment = trainer._accelerator_connector.cluster_environment
    asked = environment.requeue_signal if isinstance(environment, SLURMEnvironment) else None
    names = ("SIGTERM", "SIGUSR1", "SIGUSR2")  # Windows has the first one alone
    return {int(number) for number in (asked, *(getattr(signal, name, None) for name in names)) if number is not None}
