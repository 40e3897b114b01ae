"""What the training scripts of recipes call."""
