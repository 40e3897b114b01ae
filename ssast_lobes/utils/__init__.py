"""Shared helpers: files, seeds, lengths, presets, pictures."""
