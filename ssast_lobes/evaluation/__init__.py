"""Evaluate frozen encoders: with probes, or with external benchmarks."""
