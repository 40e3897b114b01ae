"""Check that installed packages fit together."""


class UnusableTorchaudio(ImportError):
    """torchaudio is missing, or does not load with this torch."""


def check_torchaudio():
    """Raise if torchaudio does not load; the error names a wheel to install.

    Raises
    ------
    UnusableTorchaudio
        If torchaudio is missing, or was built for another torch.

    Example
    -------
    >>> check_torchaudio()
    """
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError) as error:
        from importlib import metadata

        version = metadata.version("torch")
        release, _, build = version.partition("+")
        older = tuple(map(int, release.split(".")[:2])) < (2, 11)
        wheel = f"torchaudio=={release}" if older else "'torchaudio>=2.11.1'"
        if build:
            # PyPI has only the CUDA build of torchaudio.
            index = f"https://download.pytorch.org/whl/{build}"
            wheel = f"{wheel} --index-url {index}"
        raise UnusableTorchaudio(
            f"torchaudio does not load next to torch {version} ({error}): "
            f"`pip install --force-reinstall --no-deps {wheel}`"
        ) from error
