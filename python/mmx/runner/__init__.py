"""Runs a model: one step of a scheduled batch from token ids to sampled tokens."""

from mmx.runner.runner import ModelRunner, build_runner

__all__ = ["ModelRunner", "build_runner"]
