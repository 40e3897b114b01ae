"""Evaluation of frozen encoders: our probes, and the harnesses of others."""
