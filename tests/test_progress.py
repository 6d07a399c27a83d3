"""What the terminal shows while work is under way."""

import io

from rich.console import Console

from xinv.progress import Terminal


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
