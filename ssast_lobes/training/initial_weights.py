"""Load pretrained weights into an encoder and its objective; log them."""

import statistics
from collections import Counter

from speechbrain.utils.logger import get_logger

from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.warm_start import initialize

logger = get_logger(__name__)

# With fewer labeled clips in a class, the preset for few labels is recommended.
# It was measured with 10 to 36.
FEW = 50


def log_source(lobe):
    """Log what a lobe has loaded from its source, and what it has not.

    Arguments
    ---------
    lobe : SSAST
        A lobe that was built before the output folder had its log.
    """
    for line in lobe.report:
        logger.info(line)


def recommend_training(rows):
    """Recommend the preset for few labels in the log, if labels are few.

    Arguments
    ---------
    rows : dict of str to dict
        Training clips with ``label``, by their names.

    Example
    -------
    >>> recommend_training({"a": {"label": "dog"}, "b": {"label": "cat"}})
    """
    counts = Counter(row["label"] for row in rows.values())
    median = statistics.median(counts.values())
    if median < FEW:
        logger.info(
            f"A class has {median:g} training clips (median). With fewer than "
            f"{FEW}, try --training finetune_few_labels too: on valid it is "
            "never below a linear probe of the pretrained model"
        )


def load_pretrained(source, encoder, objective):
    """Load an encoder and the parts of its objective that fit, for training.

    Arguments
    ---------
    source : str, path or None
        An exported folder or a released checkpoint; None loads nothing.
    encoder : SpectrogramEncoder
        Changed in place.
    objective : Objective
        Its heads and decoders are loaded if the source contains them. The log
        lists what was loaded.

    Raises
    ------
    WeightsError
        If the source cannot be loaded.
    """
    if source is not None:
        for line in initialize(encoder, load_weights(source), objective):
            logger.info(line)
