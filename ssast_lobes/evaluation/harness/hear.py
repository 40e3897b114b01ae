"""Provide HEAR's common API for exported folders.

The API is that of Turian et al., "HEAR: Holistic Evaluation of Audio
Representations", PMLR 176, 2022. HEAR's tools take the name of this module:
``hear-validator ssast_lobes.evaluation.harness.hear --model FOLDER``.
"""

import torch

from ssast_lobes.evaluation.harness.windowed_model import WindowedModel


class HearModel(WindowedModel):
    """An exported folder with the attributes that HEAR expects.

    Arguments
    ---------
    source : str or path
        Exported folder.
    """

    @property
    def scene_embedding_size(self):
        """Size of the vector of a clip."""
        return self.lobe.clip_size

    @property
    def timestamp_embedding_size(self):
        """Size of the vector of a time step."""
        return self.output_size


def load_model(model_file_path=""):
    """Load an exported folder.

    Arguments
    ---------
    model_file_path : str or path
        The folder. HEAR's tools pass the value of ``--model``.

    Returns
    -------
    HearModel

    Raises
    ------
    ValueError
        If no folder is given, since there is no default model.
    WeightsError
        See `AudioEncoder.from_hparams`.

    Example
    -------
    >>> load_model()
    Traceback (most recent call last):
    ...
    ValueError: no model given: pass an exported folder with --model
    """
    if not model_file_path:
        raise ValueError("no model given: pass an exported folder with --model")
    return HearModel(model_file_path).eval()


@torch.no_grad()
def get_timestamp_embeddings(audio, model):
    """Return one vector for each time step.

    Arguments
    ---------
    audio : torch.Tensor
        Mono sounds of one length (B, S), in [-1, 1], at the model's rate.
    model : HearModel
        From `load_model`.

    Returns
    -------
    embeddings : torch.Tensor
        (B, T, D). The last time step is dropped if its center is after the end
        of the audio. So timestamps stay evenly spaced and within the audio.
    timestamps : torch.Tensor
        Centers of the time steps in milliseconds, (B, T).

    Raises
    ------
    ValueError
        See `WindowedModel.clip`.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.checkpoints.folder import export_pretrained
    >>> from ssast_lobes.objectives import MSPM
    >>> objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    >>> folder = getfixture("tmpdir") / "export"
    >>> _ = export_pretrained(folder, objective, FrontEnd(), card={})
    >>> model = load_model(folder)
    >>> vectors, times = get_timestamp_embeddings(torch.rand(2, 8000), model)
    >>> vectors.shape, times[0].tolist()
    (torch.Size([2, 3, 32]), [87.5, 247.5, 407.5])
    """
    audio = audio.to(model.fbank.window.device)
    frames = model.frames(audio)
    fbank, size = model.fbank, model.grid.patch[1]
    middle = (size - 1) * fbank.hop_samples / 2 + fbank.first_center
    middle = min(middle, audio.shape[1] / 2)
    time = torch.arange(frames.shape[1], device=audio.device)
    centers = time.double() * model.samples_per_step + middle
    within = int((audio.shape[1] - middle) // model.samples_per_step) + 1
    milliseconds = (1000 * centers / model.sample_rate).float()
    timestamps = milliseconds[:within].expand(len(audio), -1)
    return frames[:, :within], timestamps


@torch.no_grad()
def get_scene_embeddings(audio, model):
    """Return one vector for each sound.

    Arguments
    ---------
    audio : torch.Tensor
        Mono sounds of one length (B, S), in [-1, 1], at the model's rate.
    model : HearModel
        From `load_model`.

    Returns
    -------
    torch.Tensor
        (B, `scene_embedding_size`), by the pooling of the export.

    Raises
    ------
    ValueError
        See `WindowedModel.clip`.

    Example
    -------
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.checkpoints.folder import export_pretrained
    >>> from ssast_lobes.objectives import MSPM
    >>> objective = MSPM(SpectrogramEncoder(dim=32, depth=1, heads=2))
    >>> folder = getfixture("tmpdir") / "export"
    >>> _ = export_pretrained(folder, objective, FrontEnd(), card={})
    >>> model = load_model(folder)
    >>> get_scene_embeddings(torch.rand(2, 8000), model).shape
    torch.Size([2, 32])
    """
    return model.clip(audio.to(model.fbank.window.device))
