"""What chance gives of a logged number, and whether a run is above it."""

# A log of a name with this end tells what chance gives of the other one.
CHANCE = "_chance"

# A run that learns is above it: see `is_at_chance`.
_ABOVE = 1.25


def is_at_chance(stats):
    """Tell whether all accuracies are as high as chance has them.

    Measured with MSPM of `micro` on two hours of audio: a run that does not
    learn is at 0.96 to 1.02 times chance over 25 steps, one that learns at
    1.4 to 1.7 times after 50 steps.

    Arguments
    ---------
    stats : dict of str to float
        Averages of a stage; see `ObjectiveOutput`.

    Returns
    -------
    bool
        False where no chance level of an accuracy is known.

    Example
    -------
    >>> is_at_chance({"accuracy": 0.021, "accuracy_chance": 0.02, "loss": 4.0})
    True
    >>> is_at_chance({"accuracy": 0.041, "accuracy_chance": 0.02, "loss": 3.0})
    False
    """
    ratios = [
        stats[name.removesuffix(CHANCE)] / chance
        for name, chance in stats.items()
        if name.endswith(f"accuracy{CHANCE}") and chance > 0
    ]
    return bool(ratios) and max(ratios) < _ABOVE
