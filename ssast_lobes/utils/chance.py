"""Chance levels of logged numbers."""

# A log of a name with this end tells what chance gives of the other one.
CHANCE = "_chance"

# Better than chance: so much more of an accuracy, or less of a loss.
_ACCURACY, _LOSS = 1.25, 0.95


def is_at_chance(stats):
    """Return whether no number of a stage is better than chance.

    An accuracy is better when it is above 1.25 times its chance level, a loss
    below 0.95 times. Measured with MSPM of `micro` on two hours of audio,
    means over 25 steps: untrained and diverged runs were at 0.96 to 1.01 and
    above 1.06 times chance; those that learn were at 2.0 and 0.96 to 0.90
    times chance after 100 steps, with tokens that span all mel bins at 1.3 to
    1.7 and 0.96 to 0.95.

    Arguments
    ---------
    stats : dict of str to float
        Averages of a stage; see `ObjectiveOutput`.

    Returns
    -------
    bool
        False where no chance level is known.

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
