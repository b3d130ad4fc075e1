"""Schedules: how many probes to use in which epoch, and what to choose instead of probes."""

from lightning_vamo.core.schedules.base import ProbeSchedule, check_probes
from lightning_vamo.core.schedules.decision import Decision
from lightning_vamo.core.schedules.efficient import EfficientProbes
from lightning_vamo.core.schedules.fixed import ConstantProbes, ExponentialProbes, LinearProbes, as_schedule

__all__ = [
    "ConstantProbes",
    "Decision",
    "EfficientProbes",
    "ExponentialProbes",
    "LinearProbes",
    "ProbeSchedule",
    "as_schedule",
    "check_probes",
]
