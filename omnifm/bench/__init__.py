"""Benchmarks: methods against each other on real federations, and what the method costs."""
