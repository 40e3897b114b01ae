"""Models that turn audio into vectors: features, patches, blocks, heads."""
