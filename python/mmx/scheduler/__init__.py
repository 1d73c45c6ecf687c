"""Which tokens of which requests are computed in the next step, and on which pages. No torch."""

from mmx.scheduler.replicas import Replicas, make_scheduler
from mmx.scheduler.scheduler import Scheduler

__all__ = ["Replicas", "Scheduler", "make_scheduler"]
