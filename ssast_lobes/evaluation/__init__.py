"""Evaluate frozen encoders: with probes, or in the harnesses of others."""
