"""Generators of the demo's training data: pure Python, seeded, nothing read from outside."""
