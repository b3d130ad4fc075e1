"""Schedules: how many probes to use in which epoch."""

from lightning_vamo.core.schedules.base import ProbeSchedule, check_probes
from lightning_vamo.core.schedules.efficient import Decision, EfficientProbes
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
