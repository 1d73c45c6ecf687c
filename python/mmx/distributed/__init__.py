"""Collectives among ranks, behind one interface for gloo, NCCL and HCCL."""

from mmx.distributed.group import CallLog, Group
from mmx.distributed.ranks import Ranks, connect

__all__ = ["CallLog", "Group", "Ranks", "connect"]
