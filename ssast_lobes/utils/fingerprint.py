"""Hash weights and settings, to recognize what was computed with them."""

import hashlib

import torch


def fingerprint(module, settings=""):
    """Return a text that changes with the weights and the settings.

    Arguments
    ---------
    module : torch.nn.Module
        Module whose parameters and buffers are hashed, with their names.
    settings : str
        Settings to hash, as text.

    Returns
    -------
    str
        32 hexadecimal digits.

    Example
    -------
    >>> module = torch.nn.Identity()
    >>> len({fingerprint(module, text) for text in ("a", "b", "b")})
    2
    """
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        # NumPy has no bfloat16.
        values = tensor.cpu().contiguous().flatten().view(torch.uint8)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
