"""What a training starts from."""

from speechbrain.utils.logger import get_logger

from ssast_lobes.checkpoints.loading import load_weights
from ssast_lobes.checkpoints.warm_start import initialize

logger = get_logger(__name__)


def log_source(lobe):
    """Log what a lobe has loaded from its source, and what it left out.

    Arguments
    ---------
    lobe : SSAST
        Built before the output folder had its log.
    """
    for line in lobe.report:
        logger.info(line)


def load_pretrained(source, encoder, objective):
    """Load an encoder, and what fits of its objective, to train on.

    Arguments
    ---------
    source : str, path or None
        An exported folder or a released checkpoint; None loads nothing.
    encoder : SpectrogramEncoder
        Changed in place.
    objective : Objective
        Its heads and decoders are loaded where the source has them; the log
        tells what was.

    Raises
    ------
    WeightsError
        If the source does not load.
    """
    if source is not None:
        for line in initialize(encoder, load_weights(source), objective):
            logger.info(line)
