"""What a Slurm cluster offers, read from what `scontrol` prints, and jobs that fit into it or not."""

from typing import Any

import pytest

from launch.limit import seconds_in
from launch.slurm_offer import Partition, Wanted, chosen, compare, fields, nodes_of, partitions_of
from launch.work import GIB, Shape
from xinv.errors import InputError

NODES = """\
NodeName=g1 Arch=x86_64 CPUAlloc=0 CPUEfctv=64 CPUTot=64 CPULoad=0.10 AvailableFeatures=a100,ib ActiveFeatures=a100,ib \
Gres=gpu:a100:8(S:0-1),craynetwork:4 NodeAddr=10.1.0.1 NodeHostName=g1 OS=Linux 6.1.0 #1 SMP State=IDLE \
Partitions=gpu,all RealMemory=1000000
NodeName=g2 CPUEfctv=64 CPUTot=64 AvailableFeatures=a100 Gres=gpu:a100:4(S:0),gpu:v100:2 State=MIXED \
Partitions=gpu,all RealMemory=500000 Reason=a note with CPUs=3 in it [root@2026-01-01]
NodeName=g3 CPUTot=32 AvailableFeatures=(null) Gres=(null) State=IDLE+DRAIN Partitions=all RealMemory=250000
NodeName=g4 CPUTot=32 AvailableFeatures=(null) Gres=gpu:2 State=DOWN* Partitions=all RealMemory=250000
"""
PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL Default=NO MaxNodes=UNLIMITED MaxTime=2-00:00:00 Nodes=g[1-2] State=UP
PartitionName=all AllowGroups=ALL Default=YES MaxNodes=2 MaxTime=UNLIMITED Nodes=g[1-4] State=UP
PartitionName=old AllowGroups=ALL Default=NO MaxNodes=1 MaxTime=00:05:00 Nodes=g4 State=INACTIVE
"""


def test_nodes() -> None:
    one, two, three, four = nodes_of(NODES)
    assert (one.cpus, one.memory, one.gpus, one.idle) == (64, 1_000_000, {"a100": 8}, True)
    assert two.gpus == {"a100": 4, "v100": 2} and two.gpus_of(None) == 6 and two.gpus_of("v100") == 2
    assert two.up and not two.idle and "ib" not in two.features
    assert not three.up and three.gpus == {}
    assert not four.up and four.gpus_of(None) == 2 and four.gpus_of("a100") == 0


def test_values_may_hold_spaces() -> None:
    found = fields("A=1 OS=Linux 6.1 #1 SMP PREEMPT B/C:D=2 Comment=xinv demo TRES=cpu=2,mem=8000M Empty= Last=x")
    assert found == {"A": "1", "OS": "Linux 6.1 #1 SMP PREEMPT", "B/C:D": "2", "Comment": "xinv demo",
                     "TRES": "cpu=2,mem=8000M", "Empty": "", "Last": "x"}  # fmt: skip


def test_partitions() -> None:
    gpu, everything, _ = partitions_of(PARTITIONS)
    assert (gpu.seconds, gpu.nodes, gpu.default) == (172_800, None, False)
    assert (everything.seconds, everything.nodes, everything.default) == (None, 2, True)


def test_times() -> None:
    assert [seconds_in(text) for text in ("00:05:00", "1-00:00:01", "UNLIMITED", "NONE")] == [300, 86_401, None, None]


def test_choice_of_a_partition() -> None:
    known = partitions_of(PARTITIONS)
    assert chosen(known, None).name == "all" and chosen(known, "gpu").name == "gpu"
    with pytest.raises(InputError, match=r"There is no partition 'gpus'\. There are all, gpu, old\."):
        chosen(known, "gpus")
    with pytest.raises(InputError, match="Partition old takes no jobs"):
        chosen(known, "old")
    with pytest.raises(InputError, match="No partition is Slurm's default"):
        chosen(known[:1], None)


def lines(partition: str, **wanted: Any) -> list[str]:
    shape = {name: wanted.pop(name) for name in ("nodes", "cpus", "gpus", "memory") if name in wanted}
    found: Partition = chosen(partitions_of(PARTITIONS), partition)
    return compare(Wanted(Shape(**shape), **wanted), found, nodes_of(NODES))


def test_a_job_that_fits_is_told_what_there_is() -> None:
    found = lines("gpu", nodes=1, cpus=16, gpus=8)
    assert found[0].startswith("partition gpu has 2 nodes, the largest with 64 CPUs, 8 GPUs, 976.6 GiB; at most 48 h")
    assert found[1:] == ["1 of them are large enough for 1 node of 16 CPUs, 8 GPUs: 1 up, 1 idle now"]


def test_waiting_is_foretold() -> None:
    assert lines("gpu", nodes=2, gpus=4)[-1] == "the job may have to wait for others to end"
    down = nodes_of("NodeName=a CPUTot=8 RealMemory=1000 State=IDLE+DRAIN Partitions=p")
    assert "administrators" in compare(Wanted(Shape()), Partition("p", True, "UP", None, None), down)[-1]


@pytest.mark.parametrize(
    ("partition", "wanted", "words"),
    [
        (
            "gpu",
            {"gpus": 16},
            r"asks for 16 GPUs on each node; the most .* partition gpu has is 8 \(g1\).*--gpus-per-node",
        ),
        ("gpu", {"gpus": 4, "gpu_type": "v100"}, r"asks for 4 v100 GPUs on each node; the most .* is 2 \(g2\)"),
        ("gpu", {"cpus": 65}, r"asks for 65 CPUs on each node; .* is 64"),
        ("gpu", {"memory": 1000 * GIB}, r"asks for 1024000 MiB of memory .* is 1000000 \(g1\)"),
        ("gpu", {"gpus": 8, "memory": 900 * GIB, "nodes": 2}, r"partition gpu has 1 such\. Lower --nodes to 1"),
        ("all", {"nodes": 3}, r"has 4 such, and its limit is 2 nodes a job\. Lower --nodes to 2"),
        ("gpu", {"gpus": 8, "constraint": "h100"}, r"No node of partition gpu with h100 is known"),
        ("gpu", {"seconds": 3 * 86_400}, r"asks for 72 h 00 min; partition gpu gives at most 48 h 00 min"),
    ],
)
def test_what_could_never_start_is_refused_with_the_arithmetic(
    partition: str, wanted: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        lines(partition, **wanted)


def test_each_alone_is_not_all_at_once() -> None:
    nodes = nodes_of("NodeName=a CPUTot=64 RealMemory=1000 Gres=gpu:1 State=IDLE Partitions=p\n"
                     "NodeName=b CPUTot=4 RealMemory=1000 Gres=gpu:8 State=IDLE Partitions=p\n")  # fmt: skip
    with pytest.raises(InputError, match="all of 1 node of 32 CPUs, 4 GPUs at once"):
        compare(Wanted(Shape(cpus=32, gpus=4)), Partition("p", True, "UP", None, None), nodes)
