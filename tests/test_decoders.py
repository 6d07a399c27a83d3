"""Processes that decode: their errors are ours, and they end however we or they end."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from xinv.data.catalog import Catalog
from xinv.data.decoders import Decoders
from xinv.data.decoding import Request
from xinv.data.index import Index, shard_path
from xinv.data.loader import Reader
from xinv.errors import InputError, WorkError

SMALL = 15 * 256


def request_for(images: Path, rows: int = 6) -> Request:
    index = Index.load(images)
    catalog = Catalog([(images, index)], "attack", {"png": index.fields["png"]})
    pairs = np.array([(number % 5, number % 3) for number in range(rows)])
    return catalog.request(pairs)[0]


def gone(pid: int, patience: float = 10) -> bool:
    """Whether the process `pid` ends within `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_process_answers_what_this_process_would(tiny_images):
    decoders, request = Decoders(1), request_for(tiny_images)
    (here,), (there,) = Decoders(0).decode(request).values(), decoders.decode(request).values()
    np.testing.assert_array_equal(here, there)
    assert here.shape == (6, 1, 16, 16) and there.flags.writeable
    (process,) = decoders._all
    decoders.close()
    assert process.process.returncode is not None
    np.testing.assert_array_equal(here, there)  # the answer outlives who gave it


def test_errors_come_as_they_are_and_the_process_lives(tiny_images):
    decoders, sound = Decoders(1), request_for(tiny_images)
    path, stamp = sound.files[0]
    for broken, words in (
        (Request([(path, (*stamp[:2], 0)), *sound.files[1:]], sound.keys, sound.schemas, sound.places), "has changed"),
        (Request([("/not/there.tar", stamp), *sound.files[1:]], sound.keys, sound.schemas, sound.places), "is gone"),
        (
            Request(sound.files, sound.keys, sound.schemas, {"png": [[0, 0, 40]] * 6}),
            rf"{path}: {sound.keys[0]}\.png is not what the index says: no readable PNG",
        ),
    ):
        for asked in (decoders, Decoders(0)):
            with pytest.raises(InputError, match=words):
                asked.decode(broken)
    folder = Request([("/", stamp)], sound.keys, sound.schemas, {"png": [[0, 0, 40]] * 6})
    with pytest.raises((OSError, InputError)):
        decoders.decode(folder)
    decoders.decode(sound)
    assert len(decoders._all) == 1


def test_a_process_that_dies_is_a_work_error_and_never_a_hang(tiny_images):
    reader = Reader(tiny_images, "attack", memory_bytes=SMALL, decoders=2)
    stream = reader.epoch(0, 2)
    next(stream)
    for decoder in reader._decoders._all:
        decoder.process.send_signal(signal.SIGKILL)
    with pytest.raises(WorkError, match=r"decodes images \(pid \d+\) was killed by SIGKILL .*short of memory"):
        list(stream)
    # Whoever catches that may go on: other processes take their place.
    assert len(list(reader.epoch(0, 2))) == 12


def test_a_process_that_dies_in_mid_answer_is_a_work_error(tiny_images):
    decoders = Decoders(1)
    decoders.decode(request_for(tiny_images))
    (decoder,) = decoders._all
    decoder.process.send_signal(signal.SIGSTOP)  # asked, it does not answer
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            decoders.decode(request_for(tiny_images))
        except WorkError as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.2)
    assert asking.is_alive()
    decoder.process.kill()
    asking.join(10)
    assert not asking.is_alive() and len(failures) == 1


def test_a_reader_that_is_dropped_takes_its_processes_along(tiny_images):
    reader = Reader(tiny_images, "attack", memory_bytes=SMALL, decoders=1)
    list(reader.epoch(0, 8))
    pid = reader._decoders._all[0].process.pid
    del reader
    assert gone(pid)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, None])
def test_no_process_outlives_the_one_that_started_it(tiny_images, end):
    """Killed, interrupted in mid-epoch, or ended by itself."""
    script = f"""
        import time
        from pathlib import Path
        from xinv.data.loader import Reader
        reader = Reader(Path({str(tiny_images)!r}), "attack", memory_bytes={SMALL}, decoders=2)
        stream = reader.epoch(0, 2)
        batch = next(stream), next(stream)
        print(*[decoder.process.pid for decoder in reader._decoders._all], flush=True)
        {"time.sleep(60)" if end else ""}
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        pids = [int(word) for word in child.stdout.readline().split()]
        assert pids
        if end:
            os.killpg(child.pid, end)  # as a terminal does
        child.wait(30)
    assert all(gone(pid) for pid in pids)


def test_a_decoder_imports_no_torch_and_no_webdataset():
    code = "import sys, xinv.data.decoders; sys.exit(any(name in sys.modules for name in ('torch', 'webdataset')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_broken_file_of_a_finished_set_stops_the_reader_with_its_name(own_images):
    reader = Reader(own_images, "attack", memory_bytes=SMALL, decoders=2)
    list(reader.epoch(0, 4))
    shard_path(own_images, "attack", 2).unlink()
    with pytest.raises(InputError, match=r"attack/000002\.tar was there and is gone"):
        list(reader.epoch(1, 4))
