"""What the terminal shows while work is under way."""

import io

from rich.console import Console

from xinv import progress as module
from xinv.progress import Terminal, counted


def terminal(width: int = 100) -> tuple[Terminal, io.StringIO]:
    stream = io.StringIO()
    made = Terminal(stream)
    made.console = Console(file=stream, force_terminal=True, width=width, highlight=False, emoji=False)
    return made, stream


def test_a_table_stands_below_the_line_and_goes_with_the_stage() -> None:
    screen, stream = terminal()
    with screen.stage("Trials") as progress:
        progress(1, 4, "1/4 trials")
        screen.show([{"trial": "0007", "what": "film_unet", "state": "running", "MSE": "0.01776"}])
    shown = stream.getvalue()
    assert "0.01776" in shown and shown.index("1/4 trials") < shown.index("film_unet")
    with screen.stage("Next") as progress:
        progress(1, 1, "")
    assert "film_unet" not in stream.getvalue()[len(shown) :]


def test_a_file_gets_the_finished_line_alone() -> None:
    stream = io.StringIO()
    screen = Terminal(stream)
    with screen.stage("Trials") as progress:
        progress(1, 4, "1/4 trials")
        screen.show([{"trial": "0007"}])
    assert stream.getvalue().count("\n") == 1 and "0007" not in stream.getvalue()


def test_images_are_counted_with_their_rate(monkeypatch) -> None:
    now = iter([100.0, 100.0, 110.0, 120.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now, 120.0))
    told: list[tuple[float, float, str]] = []
    count = counted(lambda *words: told.append(words), [250, 250, 7], before=1000)
    for done in (0, 1, 3):
        count(done, 3, "")
    assert told == [
        (1000, 1507, "1,000 images"),
        (1250, 1507, "1,250 images, 25 a second"),
        (1507, 1507, "1,507 images, 25 a second"),
    ]


def test_the_time_left_does_not_count_what_an_earlier_run_did(monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    screen, stream = terminal(140)
    with screen.stage("Images") as progress:
        progress(900, 1000, "")
        now[0] += 10
        progress(910, 1000, "")
        screen.show([])
    assert "1 min 30 s left" in stream.getvalue()
