"""What a run cost and what the method was worth: as figures, as sentences, and as a picture. Imports errors only."""

from lightning_vamo.report.report import MadeOf, MethodReport, epoch_in_words

__all__ = ["MadeOf", "MethodReport", "epoch_in_words"]
