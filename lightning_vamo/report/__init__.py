"""The cost of a run and the benefit of its method, in figures, in sentences, and in a picture; imports errors only."""

from lightning_vamo.report.report import MadeOf, MethodReport, epoch_in_words

__all__ = ["MadeOf", "MethodReport", "epoch_in_words"]
