"""Lobes for YAMLs of SpeechBrain: encoders and pretraining."""
