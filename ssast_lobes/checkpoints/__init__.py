"""Weights on disk: our exports, official files, Hugging Face."""
