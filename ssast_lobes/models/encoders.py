"""Build encoders from configurations."""

from ssast_lobes.models.beats import BEATsEncoder
from ssast_lobes.models.encoder import SpectrogramEncoder


def encoder_class(config):
    """Return the class of the encoder that a configuration describes.

    Arguments
    ---------
    config : dict
        Arguments of the encoder, such as `SpectrogramEncoder.config`.

    Returns
    -------
    type

    Example
    -------
    >>> encoder_class({"blocks": "beats"}).__name__
    'BEATsEncoder'
    """
    is_beats = config.get("blocks") == BEATsEncoder.kind
    return BEATsEncoder if is_beats else SpectrogramEncoder


def make_encoder(config):
    """Build an encoder from its configuration.

    Arguments
    ---------
    config : dict
        See `encoder_class`.

    Returns
    -------
    SpectrogramEncoder or BEATsEncoder

    Example
    -------
    >>> make_encoder({"dim": 32, "depth": 1, "heads": 2}).depth
    1
    """
    return encoder_class(config)(**config)
