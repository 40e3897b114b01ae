"""Prepare the pretraining audio of SSAST: AudioSet, LibriSpeech, or both."""

from audioset_prepare import AudioSet
from librispeech_prepare import read_librispeech

from ssast_lobes.dataio.partition import hold_out_by_hash
from ssast_lobes.dataio.splits import write_splits
from ssast_lobes.dataio.tables import ManifestError


def prepare_pretraining(
    data_folder,
    librispeech_folder,
    output_folder,
    subset,
    librispeech_parts,
    valid_fraction,
    valid_on_eval,
    min_seconds=0.1,
    allow_download=False,
    require_counts=True,
    max_unreadable=0.01,
):
    """Gather the audio, and hold out a part of it for validation.

    Arguments
    ---------
    data_folder : str or None
        AudioSet, see `audioset_prepare`; None leaves it out.
    librispeech_folder : str or None
        LibriSpeech, see `librispeech_prepare`; None leaves it out.
    output_folder : str
        Output folder of the experiment; see `dataio.splits.write_splits`.
    subset : str
        Subset of AudioSet: "2M", or "20K" for the balanced list only.
    librispeech_parts : list of str
        Parts of LibriSpeech, such as "train-clean-100".
    valid_fraction : float
        Fraction of the audio to hold out. A speaker of LibriSpeech is held out
        with all utterances.
    valid_on_eval : bool
        True: hold out no audio, and validate on the evaluation segments of
        AudioSet, as the official script does.
    min_seconds : float
        Shorter clips are left out.
    allow_download, require_counts, max_unreadable
        See `audioset_prepare.prepare_audioset`.

    Returns
    -------
    str
        Path of the JSON file; see `dataio.splits.write_splits`.

    Raises
    ------
    ManifestError
        If the data cannot be used; the message says what to fix.
    """
    if data_folder is None and (librispeech_folder is None or valid_on_eval):
        raise ManifestError(
            "no audio to pretrain on, or none for --valid_on_eval True: give "
            "--data_folder (AudioSet), --librispeech_folder, or both"
        )
    train, valid, corpora = [], [], []
    if data_folder is not None:
        data = AudioSet(data_folder, allow_download, require_counts, False)
        train += data.train_rows(subset)
        if valid_on_eval:
            valid = data.rows("eval")
        corpora.append(f"AudioSet-{subset} ({data.available})")
    if librispeech_folder is not None:
        train += read_librispeech(
            librispeech_folder,
            librispeech_parts,
            allow_download,
            require_counts,
        )
        corpora.append(f"LibriSpeech ({', '.join(librispeech_parts)})")
    if not valid_on_eval:
        train, valid = hold_out_by_hash(train, valid_fraction, "speaker")
    return write_splits(
        {"train": train, "valid": valid},
        output_folder,
        corpus=" and ".join(corpora),
        labeled=False,
        min_seconds=min_seconds,
        max_unreadable=max_unreadable,
    )
