"""Run a function on several ranks: real processes, gloo, a file store (no port to collide on) and a time limit."""

import multiprocessing
import os
import pickle
import queue
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any


def run_on_ranks(
    function: Callable[..., Any], world: int, folder: Path, *arguments: Any, limit: float = 150
) -> list[Any]:
    """`function(*arguments)` on every rank of a gloo group of `world` processes; the results in order of rank.

    `function` must be importable. An exception on any rank fails the test with that rank's traceback, a hang after
    `limit` seconds with what is still running; no process is left behind either way.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    number = len(list(folder.glob("store-*")))
    store = folder / f"store-{number}"
    workers = [
        context.Process(target=_rank, args=(function, rank, world, store, answers, arguments), daemon=True)
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    results: dict[int, Any] = {}
    try:
        while len(results) < world:
            rank, result, failure = answers.get(timeout=limit)
            assert failure is None, f"rank {rank}:\n{failure}"
            results[rank] = pickle.loads(result)
    except queue.Empty:
        missing = sorted(set(range(world)) - set(results))
        raise AssertionError(f"ranks {missing} of {world} gave no answer within {limit:.0f} s") from None
    finally:
        for worker in workers:
            if len(results) < world:
                worker.kill()
            worker.join()
    return [results[rank] for rank in range(world)]


def _rank(
    function: Callable[..., Any], rank: int, world: int, store: Path, answers: Any, arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    # DeepSpeed names its shared memory after the port; nothing listens there.
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(os.getppid()), LOCAL_RANK=str(rank))
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(str(store), world), rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
        # By value: torch would pass tensors as handles that die with this process.
        answers.put((rank, pickle.dumps(function(*arguments)), None))
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        raise
