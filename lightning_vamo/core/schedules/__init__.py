"""Schedules: how many probes to use in which epoch, and what to choose instead of probes."""

from lightning_vamo.core.schedules.base import ProbeSchedule, check_probes
from lightning_vamo.core.schedules.decision import NUMBERS, Carriable, Decision, Kind
from lightning_vamo.core.schedules.efficient import Cost, EfficientProbes
from lightning_vamo.core.schedules.fixed import ConstantProbes, ExponentialProbes, LinearProbes, as_schedule

__all__ = [
    "NUMBERS",
    "Carriable",
    "ConstantProbes",
    "Cost",
    "Decision",
    "EfficientProbes",
    "ExponentialProbes",
    "Kind",
    "LinearProbes",
    "ProbeSchedule",
    "as_schedule",
    "check_probes",
]
