"""Adapters between NVIDIA FLARE and omnifm: controller, executor, filter and message format.  No mathematics."""
