"""A job's time limit, as people and Slurm write it."""

import re

from xinv.errors import InputError


def seconds_in(text: str) -> int | None:
    """Seconds of a time as Slurm prints it ([days-]hours:minutes:seconds); None for UNLIMITED, NONE and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def seconds_of(text: str) -> int:
    """A time limit as Slurm writes it: minutes, hours:minutes:seconds, days-hours:minutes:seconds; also 90m, 12h, 2d.

    Raises:
        InputError: it is nothing of that, or under a minute.
    """
    if found := re.fullmatch(r"(\d+)([smhd])", text):
        seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
    elif (printed := seconds_in(text)) is not None:
        seconds = printed
    elif text.isdigit():
        seconds = int(text) * 60
    else:
        raise InputError(f"{text!r} is no time limit; write 12:00:00, 2-00:00:00, 90m or 12h.")
    if seconds < 60:
        raise InputError(f"A time limit of {seconds} s is too short for any job; the least is a minute.")
    return seconds
