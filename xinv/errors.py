"""The ways a command can end early; `cli.py` turns each into one line and an exit code."""


class InputError(ValueError):
    """The user's input is wrong (exit code 2). The message says what was wrong, what was expected and what to do."""


class WorkError(RuntimeError):
    """The input was fine and the work failed all the same (exit code 1)."""


class Preempted(KeyboardInterrupt):
    """The machine is wanted back: what is under way saves what it has, and ends as at Ctrl-C."""
