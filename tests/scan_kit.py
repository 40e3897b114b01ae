"""Scans of audio as tests need them."""

from ssast_lobes.dataio.scan import scan_audio


def scan_and_write(
    rows, output_folder, min_seconds=0.0, max_unreadable=0.01, workers=16
):
    """The usable rows, and path and reason of the other files."""
    scan = scan_audio(rows, output_folder, min_seconds, workers)
    scan.write(max_unreadable)
    return scan.rows, scan.unreadable
