"""Benchmarks for a machine with an NVIDIA GPU; without one each says so and measures nothing."""
