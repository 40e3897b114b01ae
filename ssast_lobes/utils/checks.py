"""Check arguments, with one form of message.

A message states the name of the argument, its allowed values and its value:
``dropout must be a number from 0 to 1, got 2``. The constructors of the package
call these checks, and so does the code that reads the settings of a recipe.
With ``null=True`` a check also accepts None.
"""

import math
from numbers import Integral, Real


class ArgumentError(ValueError):
    """An argument is wrong; the message names the allowed values."""


def require(right, name, allowed, value):
    """Raise unless a condition holds.

    Arguments
    ---------
    right : bool
        The condition.
    name : str
        Name of the argument.
    allowed : str
        Allowed values, as text after "must be".
    value : object
        The given value.

    Raises
    ------
    ArgumentError
        If `right` is False.

    Example
    -------
    >>> require(False, "pooling", "mean or class", "max")
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: pooling must be mean or class, got 'max'
    """
    if not right:
        raise ArgumentError(f"{name} must be {allowed}, got {value!r}")


def whole(name, value, least=1, most=None, null=False):
    """Return a value that is a whole number; raise for any other value.

    Arguments
    ---------
    name : str
        Name of the argument.
    value : object
        Value to check.
    least : int
        Lowest allowed value.
    most : int, optional
        Highest allowed value.
    null : bool
        Whether None is allowed too.

    Returns
    -------
    int or None

    Raises
    ------
    ArgumentError
        If the value is not a whole number, or out of range.

    Example
    -------
    >>> whole("batch_size", 4), whole("batch_size", None, null=True)
    (4, None)
    >>> whole("batch_size", 0)
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: batch_size must be a whole number of at \
least 1, got 0
    """
    right = isinstance(value, Integral) and not isinstance(value, bool)
    right = right and least <= value and (most is None or value <= most)
    reach = (
        f"of at least {least}" if most is None else f"from {least} to {most}"
    )
    return _checked(right, name, f"a whole number {reach}", value, null)


def real(name, value, least=-math.inf, most=math.inf, inside=False, null=False):
    """Return a value that is a number; raise for any other value.

    Arguments
    ---------
    name : str
        Name of the argument.
    value : object
        Value to check. Infinity and NaN are not allowed.
    least, most : float
        Lowest and highest allowed value.
    inside : bool
        Whether the limits themselves are forbidden.
    null : bool
        Whether None is allowed too.

    Returns
    -------
    float or None

    Raises
    ------
    ArgumentError
        If the value is not a number, or out of range.

    Example
    -------
    >>> real("probability", 0.5, 0, 1)
    0.5
    >>> real("mask ratio", 2, 0, 1, inside=True)
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: mask ratio must be a number between 0 \
and 1, got 2
    """
    right = _is_number(value) and math.isfinite(value)
    if inside:
        right = right and least < value < most
        words = f" between {least} and {most}", f" above {least}"
    else:
        right = right and least <= value <= most
        words = f" from {least} to {most}", f" of at least {least}"
    bounds = math.isfinite(least) + math.isfinite(most)
    reach = ("", words[1], words[0])[bounds]
    return _checked(right, name, f"a number{reach}", value, null)


def reals(name, value, least=-math.inf, most=math.inf, count=2):
    """Return a value that is a list of numbers; raise for any other value.

    Arguments
    ---------
    name : str
        Name of the argument.
    value : object
        Value to check.
    least, most : float
        Lowest and highest allowed value.
    count : int, optional
        Required length of the list. If it is 2, the numbers are a range: the
        first must not be above the second. None allows any length and order.

    Returns
    -------
    list or tuple
        The unchanged value.

    Raises
    ------
    ArgumentError
        If the value is not such a list.

    Example
    -------
    >>> reals("level", [0.1, 0.7], 0, 1)
    [0.1, 0.7]
    >>> reals("level", [0.7, 0.1], 0, 1)
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: level must be the lowest and the \
highest number of a range from 0 to 1, got [0.7, 0.1]
    """
    right = isinstance(value, list | tuple) and all(
        _is_number(x) and math.isfinite(x) and least <= x <= most for x in value
    )
    reach = ""
    if math.isfinite(least):
        reach = f" of at least {least}"
        if math.isfinite(most):
            reach = f" from {least} to {most}"
    words = f"a list of numbers{reach}"
    if count == 2:
        right = right and len(value) == 2 and value[0] <= value[1]
        words = f"the lowest and the highest number of a range{reach}"
    elif count is not None:
        right = right and len(value) == count
        words = f"a list of {count} numbers{reach}"
    return _checked(right, name, words, value, null=False)


def flag(name, value):
    """Return a value that is True or False; raise for any other value.

    Arguments
    ---------
    name : str
        Name of the argument.
    value : object
        Value to check.

    Returns
    -------
    bool

    Raises
    ------
    ArgumentError
        If the value is neither True nor False.

    Example
    -------
    >>> flag("random_crop", "yes")
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: random_crop must be True or False, got \
'yes'
    """
    right = isinstance(value, bool)
    return _checked(right, name, "True or False", value, null=False)


def one_of(name, value, allowed, null=False):
    """Return a word; raise if it is not one of the allowed words.

    Arguments
    ---------
    name : str
        Name of the argument.
    value : object
        Value to check.
    allowed : iterable of str
        The allowed words.
    null : bool
        Whether None is allowed too.

    Returns
    -------
    str or None

    Raises
    ------
    ArgumentError
        If the value is none of the allowed words.

    Example
    -------
    >>> one_of("layers", "first", ("last", "all"))
    Traceback (most recent call last):
    ...
    ssast_lobes...ArgumentError: layers must be one of last, all, got \
'first'
    """
    words = f"one of {', '.join(map(str, allowed))}"
    right = isinstance(value, str) and value in allowed
    return _checked(right, name, words, value, null)


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def _checked(right, name, allowed, value, null):
    if null and value is None:
        return value
    require(right, name, allowed + ", or null" * null, value)
    return value
