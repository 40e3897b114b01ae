"""LP-FT: start fine-tuning with the head of a linear probe.

A new head is random, and its first gradients damage what the encoder has
learned. Kumar et al., "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", ICLR 2022, therefore first train only the
head. Here this head is the optimum of a logistic regression, without training.
"""

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ssast_lobes.dataio.dataset import collate
from ssast_lobes.dataio.waveforms import UnreadableAudio
from ssast_lobes.evaluation.probing.classifiers import linear_weights
from ssast_lobes.training.errors import SettingsError
from ssast_lobes.training.loaders import SkipUndecodable


@torch.no_grad()
def fit_head(model, features, dataset, penalty, batch_size=16):
    """Set a classifier's linear layer to the logistic regression on a dataset.

    Each process computes the same result in float64, which is fast enough for
    thousands of clips. The mode of the model (train or eval) does not change.

    Arguments
    ---------
    model : SpectrogramClassifier
        Changed in place.
    features : FrontEnd
        Converts waveforms to normalized log-mel.
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        Training clips with one label each, and items ``sig`` and ``target``;
        see `make_dataset`. Clips that cannot be read are skipped.
    penalty : float
        Factor of the squared weights in the loss; see `logistic_regression`.
    batch_size : int
        Number of clips computed at once.

    Raises
    ------
    SettingsError
        If the head has a projection or a cosine scale.
    UnreadableAudio
        If no clip can be read.

    Example
    -------
    >>> import soundfile
    >>> from ssast_lobes import FrontEnd, SpectrogramEncoder
    >>> from ssast_lobes.dataio.dataset import ClipReader, make_dataset
    >>> from ssast_lobes.models.heads import SpectrogramClassifier
    >>> from speechbrain.dataio.encoder import CategoricalEncoder
    >>> classes, rows = CategoricalEncoder(), {}
    >>> classes.update_from_iterable(["low", "high"])
    >>> for number in range(6):
    ...     path = str(getfixture("tmpdir").join(f"{number}.wav"))
    ...     label, factor = [("low", 1), ("high", 5)][number % 2]
    ...     wave = torch.sin(factor * torch.arange(8000) * (0.1 + number / 99))
    ...     soundfile.write(path, 0.5 * wave.numpy(), 16000)
    ...     rows[path] = {"path": path, "duration": 0.5, "label": label}
    >>> dataset = make_dataset(rows, ClipReader(), classes)
    >>> encoder = SpectrogramEncoder(dim=32, depth=1, heads=2)
    >>> model = SpectrogramClassifier(encoder, 2).eval()
    >>> fit_head(model, FrontEnd(), dataset, penalty=0.01)
    >>> wavs = torch.stack([item["sig"] for item in dataset])
    >>> model(*FrontEnd()(wavs)).argmax(1).tolist()
    [0, 1, 0, 1, 0, 1]
    """
    head = model.head
    if head.projection is not None or head.cosine_scale is not None:
        raise SettingsError(
            "lp_init_penalty is for heads that are linear, without a projection"
        )
    was_training = model.training
    model.eval()
    device = head.linear.weight.device
    reading = SkipUndecodable(collate)
    loader = DataLoader(dataset, batch_size, collate_fn=reading)
    vectors, targets = [], []
    for batch in tqdm(loader, "Fitting the head"):
        if batch is None:
            continue
        feats, n_frames = features(*batch.to(device).sig)
        vectors.append(head.norm(model.embed(feats, n_frames)).cpu())
        targets.append(batch.target.cpu())
    model.train(was_training)
    if not vectors:
        raise UnreadableAudio("lp_init_penalty: no training clip can be read")
    weight, bias = linear_weights(
        torch.cat(vectors),
        torch.cat(targets),
        head.linear.out_features,
        penalty,
    )
    head.linear.weight.copy_(weight)
    head.linear.bias.copy_(bias)
