"""What a YAML of SpeechBrain names: encoders and pretraining as lobes."""
