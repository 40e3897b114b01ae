"""What turns audio into vectors: features, patches, blocks, heads."""
