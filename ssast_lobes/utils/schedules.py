"""Schedules of a value over the optimizer steps of a run.

Each schedule is called with the steps taken so far and the steps of the whole
run. It returns a number: a multiplier of the learning rate, a weight decay, a
momentum or a temperature. Schedules have no state, so a resumed run continues
the same curve. Only `WarmupPlateau` has a state, because it follows a metric.
"""

import math

from torch import nn

from ssast_lobes.utils.checks import real, require, whole


def count_steps(duration, total_steps):
    """Turn a duration into optimizer steps.

    Arguments
    ---------
    duration : int or float
        An int counts steps; a float from 0 to 1 is a fraction of the run.
    total_steps : int
        Steps of the whole run.

    Returns
    -------
    int
        Optimizer steps.

    Raises
    ------
    ValueError
        If the duration is negative, or a fraction above 1.

    Example
    -------
    >>> count_steps(0.1, 5000), count_steps(1000, 5000)
    (500, 1000)
    """
    _duration("duration", duration)
    if isinstance(duration, float):
        return round(duration * total_steps)
    return duration


def _duration(name, value):
    """Return a value that is a duration; raise for any other value."""
    right = isinstance(value, float) and 0.0 <= value <= 1.0
    whole_number = isinstance(value, int) and not isinstance(value, bool)
    require(
        right or (whole_number and value >= 0),
        name,
        "a fraction from 0.0 to 1.0 of the run, or a whole number of steps "
        "(without a point)",
        value,
    )
    return value


def warmup_factor(step, warmup_steps):
    """Return a factor that rises linearly to 1 at the last warm-up step.

    The factor is above 0 at the first step, since a step at learning rate 0 is
    wasted.

    Arguments
    ---------
    step : int
        Optimizer steps taken so far.
    warmup_steps : int
        Number of steps of the rise; 0 means no warm-up.

    Returns
    -------
    float
        Above 0 and at most 1.

    Example
    -------
    >>> [warmup_factor(step, 4) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    if step >= warmup_steps:
        return 1.0
    return (step + 1) / warmup_steps


class Constant:
    """Return the same value at each step.

    Arguments
    ---------
    value : float
        The value.

    Example
    -------
    >>> Constant(0.05)(step=7, total_steps=100)
    0.05
    """

    def __init__(self, value=1.0):
        self.value = real("value", value)

    def __call__(self, step, total_steps):
        """Return the value at a step.

        Arguments
        ---------
        step : int
            Optimizer steps taken so far.
        total_steps : int
            Steps of the whole run.

        Returns
        -------
        float
            The value.
        """
        return self.value


class Linear:
    """Return values on a straight line from one value to another.

    Arguments
    ---------
    start : float
        Value at the end of the warm-up, or at step 0 without a warm-up.
    end : float
        Value from the end of `duration` on.
    warmup : int or float
        Length of a linear rise from 0 to `start`, in steps (int) or as a
        fraction of the run (float).
    duration : int or float
        Time from step 0 until `end` is reached, including the warm-up, in steps
        (int) or as a fraction of the run (float).

    Example
    -------
    >>> temperature = Linear(0.04, 0.07, duration=0.3)
    >>> [round(temperature(step, 100), 3) for step in (0, 15, 30, 99)]
    [0.04, 0.055, 0.07, 0.07]
    """

    def __init__(self, start=1.0, end=0.0, warmup=0, duration=1.0):
        self.start = real("start", start)
        self.end = real("end", end)
        self.warmup = _duration("warmup", warmup)
        self.duration = _duration("duration", duration)

    def __call__(self, step, total_steps):
        """Return the value at a step.

        Arguments
        ---------
        step : int
            Optimizer steps taken so far.
        total_steps : int
            Steps of the whole run.

        Returns
        -------
        float
            The value.
        """
        warmup = count_steps(self.warmup, total_steps)
        if step < warmup:
            return self.start * warmup_factor(step, warmup)
        length = count_steps(self.duration, total_steps) - warmup
        progress = min(1.0, (step - warmup) / max(1, length))
        return self.end + (self.start - self.end) * self._remaining(progress)

    @staticmethod
    def _remaining(progress):
        return 1.0 - progress


class WarmupCosine(Linear):
    """Return values on half a cosine (Loshchilov & Hutter, 2017).

    With a warm-up and an `end` above 0, this is the learning-rate schedule of
    this project's own recipes. Without a warm-up and with `end` above `start`,
    it is the rising momentum of a teacher, or the rising weight decay of DINO.

    Arguments
    ---------
    start : float
        Value at the end of the warm-up, or at step 0 without a warm-up.
    end : float
        Value from the end of `duration` on.
    warmup : int or float
        Length of a linear rise from 0 to `start`, in steps (int) or as a
        fraction of the run (float).
    duration : int or float
        Time from step 0 until `end` is reached, including the warm-up, in steps
        (int) or as a fraction of the run (float).

    Example
    -------
    >>> schedule = WarmupCosine(end=0.01, warmup=0.1)
    >>> [round(schedule(step, 100), 3) for step in (0, 9, 55, 100)]
    [0.1, 1.0, 0.505, 0.01]
    """

    @staticmethod
    def _remaining(progress):
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class WarmupStepDecay:
    """Reduce the rate by a factor every few epochs, after a linear warm-up.

    This is SSAST's fine-tuning schedule (`src/traintest.py`, `MultiStepLR` on
    `range(first, 1000, every)`). Epochs 0 to `first` - 1 have the full rate.
    Then the rate is multiplied by `factor` every `every` epochs. The warm-up
    differs: SSAST's starts at 0, rises every 50 steps and overrides the decay.
    If a run is shorter or longer than `epochs`, the schedule is scaled to its
    length.

    Arguments
    ---------
    epochs : int
        Epochs of the whole run.
    factor : float
        Multiplier of each decay.
    first : int
        Number of epochs before the first decay.
    every : int
        Epochs between two decays.
    warmup : int or float
        Length of the linear rise, in steps (int) or as a fraction of the run
        (float).

    Example
    -------
    >>> schedule = WarmupStepDecay(epochs=25, factor=0.5, first=10, every=5)
    >>> [schedule(epoch * 40, 25 * 40) for epoch in (0, 9, 10, 15, 24)]
    [1.0, 1.0, 0.5, 0.25, 0.125]
    """

    def __init__(self, epochs, factor=0.5, first=10, every=5, warmup=0):
        self.epochs = whole("epochs", epochs)
        self.factor = real("factor", factor, 0)
        self.first = whole("first", first, 0)
        self.every = whole("every", every)
        self.warmup = _duration("warmup", warmup)

    def __call__(self, step, total_steps):
        """Return the multiplier at a step.

        Arguments
        ---------
        step : int
            Optimizer steps taken so far.
        total_steps : int
            Steps of the whole run.

        Returns
        -------
        float
            The multiplier.
        """
        warmup = count_steps(self.warmup, total_steps)
        epoch = step * self.epochs // total_steps
        decays = max(0, (epoch - self.first) // self.every + 1)
        return warmup_factor(step, warmup) * self.factor**decays


class WarmupPlateau(nn.Module):
    """Reduce the rate when a metric stops improving, after a linear warm-up.

    This is SSAST's pretraining schedule (`src/traintest_mask.py`). The warm-up
    ends at step 1000. The rate is halved at the third evaluation in a row
    without a better masked accuracy. The rule is that of
    `torch.optim.lr_scheduler.ReduceLROnPlateau` with `mode="max"`, but also
    fits negative metrics. The class is a module without parameters, so that its
    state is checkpointed like that of other modules.

    Arguments
    ---------
    warmup : int or float
        Length of the linear rise, in steps (int) or as a fraction of the run
        (float).
    factor : float
        Multiplier of each reduction.
    patience : int
        Number of evaluations in a row without improvement that do not reduce
        the rate. The next one does.
    threshold : float
        Relative gain that counts as an improvement.

    Example
    -------
    >>> schedule = WarmupPlateau(warmup=0, factor=0.5, patience=1)
    >>> for accuracy in (0.3, 0.2, 0.3):
    ...     schedule.update(accuracy)
    >>> schedule(step=100, total_steps=1000)
    0.5
    """

    def __init__(self, warmup=1000, factor=0.5, patience=2, threshold=1e-4):
        super().__init__()
        self.warmup = _duration("warmup", warmup)
        self.factor = real("factor", factor, 0)
        self.patience = whole("patience", patience, 0)
        self.threshold = real("threshold", threshold, 0)
        self.best = -math.inf
        self.bad_evaluations = 0
        self.multiplier = 1.0

    def forward(self, step, total_steps):
        """Return the multiplier at a step.

        Arguments
        ---------
        step : int
            Optimizer steps taken so far.
        total_steps : int
            Steps of the whole run.

        Returns
        -------
        float
            The multiplier.
        """
        warmup = count_steps(self.warmup, total_steps)
        return warmup_factor(step, warmup) * self.multiplier

    def update(self, metric):
        """Update the multiplier after an evaluation.

        Arguments
        ---------
        metric : float
            Result; higher is better, so negate a loss.
        """
        gain = 0.0 if math.isinf(self.best) else abs(self.best) * self.threshold
        if metric > self.best + gain:
            self.best = float(metric)
            self.bad_evaluations = 0
            return
        self.bad_evaluations += 1
        if self.bad_evaluations > self.patience:
            self.multiplier *= self.factor
            self.bad_evaluations = 0

    def get_extra_state(self):
        """Return the state for `state_dict`.

        Returns
        -------
        dict
            Best metric, number of bad evaluations in a row, and multiplier.
        """
        return {
            "best": self.best,
            "bad_evaluations": self.bad_evaluations,
            "multiplier": self.multiplier,
        }

    def set_extra_state(self, state):
        """Restore what `state_dict` saved.

        Arguments
        ---------
        state : dict
            From `get_extra_state`.
        """
        self.best = state["best"]
        self.bad_evaluations = state["bad_evaluations"]
        self.multiplier = state["multiplier"]


def apply_learning_rate(optimizer, lr):
    """Set the learning rate of every group, scaled by its own factor.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
        A group may have `"lr_scale"`: the head's factor, or the layer-wise
        decay of its block. A group without it gets the unscaled rate.
    lr : float
        Base rate times the schedule's multiplier.

    Example
    -------
    >>> import torch
    >>> body, head = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    >>> groups = [{"params": [body]}, {"params": [head], "lr_scale": 10.0}]
    >>> optimizer = torch.optim.Adam(groups)
    >>> apply_learning_rate(optimizer, 0.1 * Constant(0.5)(0, 100))
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.05, 0.5]
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def apply_weight_decay(optimizer, weight_decay):
    """Set the weight decay of every group whose weights may decay.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
        A group may have `"decays"`, False if its weights must not decay.
    weight_decay : float
        The decay.

    Example
    -------
    >>> import torch
    >>> weight, bias = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    >>> groups = [{"params": [weight]}, {"params": [bias], "decays": False}]
    >>> optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    >>> apply_weight_decay(optimizer, WarmupCosine(0.04, 0.4)(100, 100))
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.4, 0.0]
    """
    for group in optimizer.param_groups:
        if group.get("decays", True):
            group["weight_decay"] = weight_decay
