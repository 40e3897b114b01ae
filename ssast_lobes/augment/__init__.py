"""Augmentation and degradation of batches of audio."""
