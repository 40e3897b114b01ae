"""Nearest codes, their frequency, their chance level, and their collapse."""

import math

import torch
from speechbrain.utils.logger import get_logger
from torch import nn

from ssast_lobes.utils.checks import ArgumentError
from ssast_lobes.utils.distributed import mean_over_processes

logger = get_logger(__name__)

# If the data of the fit use less than this fraction of the codes, the codes
# have collapsed, since most clusters are empty.
_LEAST_USED = 0.5
# The limit is lower in training, since the training audio may differ from the
# audio of the fit.
FEW_USED = 0.1
# If a larger fraction of the tokens has the same code, codes teach nothing.
_MOST_ALIKE = 0.98
_BATCHES = 100


def nearest(x, codes):
    """Return the ids of the nearest codes.

    Arguments
    ---------
    x : torch.Tensor
        (B, n_books or 1, N, D).
    codes : torch.Tensor
        (n_books, n_codes, D).

    Returns
    -------
    torch.Tensor
        (B, n_books, N) int64.

    Example
    -------
    >>> codes = torch.tensor([[[0.0], [1.0]]])
    >>> nearest(torch.tensor([[[[0.2], [0.9]]]]), codes)
    tensor([[[0, 1]]])
    """
    scores = x @ codes.transpose(1, 2) - codes.square().sum(2)[:, None] / 2
    return scores.argmax(3)


def code_frequency(ids, n_codes, weight):
    """Return the frequency of each code of each codebook.

    Arguments
    ---------
    ids : torch.Tensor
        int64 (.., n_books).
    n_codes : int
        Codes of each codebook.
    weight : torch.Tensor
        (..), 1 at ids that count, else 0.

    Returns
    -------
    torch.Tensor
        float32 (n_books, n_codes), each row with a sum of 1.

    Example
    -------
    >>> ids = torch.tensor([0, 1, 1, 0])[:, None]
    >>> code_frequency(ids, 3, torch.ones(4))
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    ids = ids.flatten(0, -2).T
    weight = weight.flatten().float().expand_as(ids)
    total = torch.zeros(len(ids), n_codes, device=ids.device)
    total.scatter_add_(1, ids, weight)
    return total / total.sum(1, keepdim=True).clamp(min=1)


def used_and_entropy(frequency):
    """Return how many codes are used, and how evenly.

    Arguments
    ---------
    frequency : torch.Tensor
        See `code_frequency`.

    Returns
    -------
    used : float
        Fraction of the codes of all codebooks that are used.
    entropy : float
        Entropy of the codes divided by its maximum: 1 if all codes are equally
        frequent.

    Example
    -------
    >>> used, entropy = used_and_entropy(torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    >>> used, round(entropy, 3)
    (0.5, 0.5)
    """
    used = (frequency > 0).float().mean().item()
    entropy = torch.special.entr(frequency).sum(1).mean().item()
    return used, entropy / math.log(frequency.shape[1])


def refuse_collapse(frequency, source, least=_LEAST_USED):
    """Raise if too few codes are used.

    Arguments
    ---------
    frequency : torch.Tensor
        See `code_frequency`.
    source : str
        Name of the codes in the error.
    least : float
        Least fraction of the codes of all codebooks, by default half.

    Raises
    ------
    ValueError
        If a smaller fraction is used.

    Example
    -------
    >>> refuse_collapse(torch.tensor([[0.5, 0.5, 0.0]]), "codes")
    """
    used, entropy = used_and_entropy(frequency)
    if used < least:
        raise ArgumentError(
            f"{source}: the codes have collapsed: {100 * used:.0f} % of "
            f"{frequency.shape[1]} are used, entropy {entropy:.2f} of 1; fit "
            "fewer codes, or more audio"
        )


class CodeUsage(nn.Module):
    """Track which codes occurred in the last hundred training batches.

    A single batch contains only some of the codes, so usage is measured over
    many batches. With several processes, only the batches of the first process
    count, since DDP sends the buffers of the first process to the others.

    Arguments
    ---------
    n_books, n_codes : int
        Number of codebooks, and of codes in each.

    Example
    -------
    >>> usage = CodeUsage(1, 4)
    >>> usage(torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    tensor(0.5000)
    >>> usage(torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    tensor(0.7500)
    """

    def __init__(self, n_books, n_codes):
        super().__init__()
        unused_for = torch.full((n_books, n_codes), _BATCHES)
        self.register_buffer("unused_for", unused_for)

    def forward(self, frequency):
        """Return the fraction of codes of the last training batches.

        In training, first record this batch.

        Arguments
        ---------
        frequency : torch.Tensor
            See `code_frequency`.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        if self.training:
            self.unused_for += 1
            self.unused_for *= frequency == 0
        return self.used()

    def used(self):
        """Return the fraction of the codes that are used, a scalar tensor."""
        return (self.unused_for < _BATCHES).float().mean()

    def is_collapsed(self):
        """Return whether hardly any code is used; waits for the device."""
        return self.used().item() < FEW_USED

    def told(self):
        """Return the fraction of used codes in words."""
        return (
            f"{100 * self.used().item():.1f} % of {self.unused_for.shape[1]} "
            f"are used in {_BATCHES} batches"
        )

    def warn_of_collapse(self, step, total_steps):
        """Warn if few codes are used, after 200 steps and at the end.

        Arguments
        ---------
        step, total_steps : int
            Number of this step, and number of steps of the training.
        """
        # By then the first batches, from before a collapse, no longer count.
        if step in (2 * _BATCHES, total_steps) and self.is_collapsed():
            logger.warning(
                f"Few codes occur: {self.told()}. Fewer codes, or codes that "
                "are fitted to your audio, may teach more"
            )


class CodeChance(nn.Module):
    """Guess codes by how frequent they were in the last training batches.

    This is the chance level of a prediction of codes. The frequencies decay
    over about a hundred batches, since a single batch contains only some of the
    codes. All codes together count as one more batch, so that no code is
    impossible: before the first batch all codes are equally likely. With
    several processes, only the batches of the first process count, since DDP
    sends the buffers of the first process to the others.

    Arguments
    ---------
    n_books, n_codes : int
        Number of codebooks, and of codes in each.

    Example
    -------
    >>> chance = CodeChance(1, 4)
    >>> chance(torch.tensor([[[0]]]))[0].exp()  # one of four
    tensor([[[4.]]])
    >>> chance.record(torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    >>> cross_entropy, right = chance(torch.tensor([[[2]]]))
    >>> cross_entropy.exp(), right.item()
    (tensor([[[1.6000]]]), True)
    """

    def __init__(self, n_books, n_codes):
        super().__init__()
        # The sum of the frequencies of recent batches.
        self.register_buffer("recent", torch.zeros(n_books, n_codes))

    def forward(self, ids):
        """Return the cross-entropy of the guess, and whether it is right.

        Arguments
        ---------
        ids : torch.Tensor
            Codes (B, K, n_books) int64.

        Returns
        -------
        cross_entropy : torch.Tensor
            In nats, float32 (B, K, n_books).
        right : torch.Tensor
            Boolean (B, K, n_books), True at the most frequent code.
        """
        weights = self.recent + 1 / self.recent.shape[1]
        surprise = -(weights / weights.sum(1, keepdim=True)).log()
        books = torch.arange(len(weights), device=ids.device)
        return surprise[books, ids], ids == weights.argmax(1)

    def record(self, frequency):
        """Add a training batch.

        Arguments
        ---------
        frequency : torch.Tensor
            See `code_frequency`.
        """
        self.recent.mul_(1 - 1 / _BATCHES).add_(frequency)

    def refuse_collapse(self, step):
        """Raise if the codes of a book are nearly always the same.

        The check is due once, after 200 steps: a code must not have more than
        98 % of the tokens. All processes decide alike, and wait for each other.

        Arguments
        ---------
        step : int
            Number of this step.

        Raises
        ------
        ValueError
            If a codebook has collapsed.
        """
        if step != 2 * _BATCHES:
            return
        recent = mean_over_processes(self.recent.clone())
        total = recent.sum(1).clamp(min=torch.finfo(recent.dtype).tiny)
        alike = recent.amax(1) / total
        if alike.max() > _MOST_ALIKE:
            raise ArgumentError(
                f"codebook {alike.argmax() + 1} of {len(alike)} has collapsed: "
                f"{100 * alike.max():.1f} % of the tokens have the same of its "
                f"{recent.shape[1]} codes, so there is nothing to predict. Fit "
                "codes to your audio (`ssast-lobes tokenizer fit --help`), or "
                "measure its statistics (`ssast-lobes stats`), in case it is "
                "quiet"
            )


def refuse_other_front_end(source, fitted, other, given, ignored=()):
    """Raise if codes were fitted with another front end.

    Arguments
    ---------
    source : str
        File or folder of the codes.
    fitted : dict
        `config` of their front end.
    other : str
        Name of the other front end in the error.
    given : dict
        Its `config`.
    ignored : tuple of str
        Keys that may differ.

    Raises
    ------
    ValueError
        If an entry differs.

    Example
    -------
    >>> refuse_other_front_end("a", {"n_mels": 128}, "b", {"n_mels": 64})
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: tokenizer: a was fitted with another n_mels ...
    """
    for key in sorted((fitted | given).keys() - set(ignored)):
        own, its = fitted.get(key), given.get(key)
        if own != its:
            told = f", {own} instead of {its}"
            raise ArgumentError(
                f"tokenizer: {source} was fitted with another {key} than "
                f"{other}{told if len(told) < 160 else ''}: its codes would "
                "mean nothing. Fit it again with the settings of the "
                "pretraining, or pretrain with those of the fit"
            )
