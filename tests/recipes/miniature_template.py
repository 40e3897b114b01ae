"""A miniature of anybody's data, for the template: audio, and a table."""

from conftest import make_tones


def make(folder):
    """Write clips and `manifest.csv` into a folder; gives the folder."""
    folder.mkdir(parents=True)
    return make_tones(folder).folder
