"""Collectives among ranks, behind one interface for gloo, NCCL and HCCL."""

from mmx.distributed.group import CallLog, Group
from mmx.distributed.ranks import Ranks

__all__ = ["CallLog", "Group", "Ranks"]
