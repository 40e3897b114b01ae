"""Chance levels of logged numbers."""

# Suffix: the log ``accuracy_chance`` is the chance level of ``accuracy``.
CHANCE = "_chance"

# Limits as multiples of the chance level. An accuracy above its limit, or a
# loss below its limit, is better than chance.
_ACCURACY, _LOSS = 1.25, 0.95


def is_at_chance(stats):
    """Return whether no number of a stage is better than chance.

    An accuracy is better if it is above 1.25 times its chance level, a loss if
    it is below 0.95 times its chance level. The factors were chosen with MSPM
    of `micro` on two hours of audio, from means over 25 steps. Untrained and
    diverged runs had accuracies of 0.96 to 1.01 times chance, and losses above
    1.06 times chance. After 100 steps, runs that learn had accuracies of 2.0
    times chance, and losses of 0.96 to 0.90 times chance. With tokens that span
    all mel bins, the accuracies were 1.3 to 1.7 times chance, and the losses
    0.96 to 0.95 times chance.

    Arguments
    ---------
    stats : dict of str to float
        Mean values of a stage by name; see `ObjectiveOutput`.

    Returns
    -------
    bool
        False if no chance level is known.

    Example
    -------
    >>> is_at_chance({"accuracy": 0.021, "accuracy_chance": 0.02, "mse": 4.0})
    True
    >>> is_at_chance({"accuracy": 0.041, "accuracy_chance": 0.02, "mse": 3.0})
    False
    """
    known = [name for name in stats if f"{name}{CHANCE}" in stats]
    return bool(known) and not any(
        stats[name] > _ACCURACY * stats[f"{name}{CHANCE}"]
        if name.endswith("accuracy")
        else stats[name] < _LOSS * stats[f"{name}{CHANCE}"]
        for name in known
    )
