"""Scenarios by name. Each is a function without arguments that raises on failure, and Skip where the machine lacks something it needs."""

SCENARIOS = {}


class Skip(Exception):
    """The text names what is missing."""


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def check_equal(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, want {want!r}")
