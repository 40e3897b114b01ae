"""Lobes for SpeechBrain's YAMLs: encoders and pretraining."""
