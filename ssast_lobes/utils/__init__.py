"""What every folder uses: files, seeds, lengths, presets, pictures."""
