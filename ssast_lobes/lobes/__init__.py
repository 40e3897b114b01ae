"""Lobes, which a YAML of SpeechBrain names: encoders and pretraining."""
