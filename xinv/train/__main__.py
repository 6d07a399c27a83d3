"""Train one network from a job file, without Ray: `torchrun --nproc-per-node 2 -m xinv.train JOB.json`.

A job file is the JSON form of `xinv.train.loop.TrainJob`; each trained stage of an audit leaves its own as `job.json`.
"""

import json
import sys
from pathlib import Path

from pydantic import ValidationError

from xinv.errors import InputError, WorkError
from xinv.train.loop import TrainJob, train


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: torchrun --nproc-per-node N -m xinv.train JOB.json", file=sys.stderr)
        return 2
    try:
        job = TrainJob.model_validate_json(Path(arguments[0]).read_text())
        summary = train(job, events=lambda record: print(json.dumps(record), flush=True))
    except (InputError, ValidationError, FileNotFoundError) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 2
    except WorkError as error:
        print(error, file=sys.stderr)
        return 1
    print(summary.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
