"""A job's time limit, as people and Slurm write it."""

import re

from xinv.errors import InputError


def seconds_of(text: str) -> int:
    """A time limit as Slurm writes it: minutes, hours:minutes:seconds, days-hours:minutes:seconds; also 90m, 12h, 2d.

    Raises:
        InputError: it is nothing of that, or under a minute.
    """
    if found := re.fullmatch(r"(\d+)([smhd])", text):
        seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
    elif found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    elif text.isdigit():
        seconds = int(text) * 60
    else:
        raise InputError(f"{text!r} is no time limit; write 12:00:00, 2-00:00:00, 90m or 12h.")
    if seconds < 60:
        raise InputError(f"A time limit of {seconds} s is too short for any job; the least is a minute.")
    return seconds
