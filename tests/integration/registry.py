"""Scenarios by name. Each is a function without arguments that raises on failure, and Skip where the machine lacks something it needs."""

SCENARIOS = {}
BESIDE_OTHERS = set()  # names of those that may run while another one runs


class Skip(Exception):
    """The text names what is missing."""


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def scenario_beside_others(function):
    """It waits for events, and the moments that it hits are held (a process stopped, a slow link) or last as long as the machine is busy: others change nothing."""
    BESIDE_OTHERS.add(function.__name__)
    return scenario(function)


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def check_equal(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, want {want!r}")
