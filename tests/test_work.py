"""What is submitted: the resolved configuration, and the settings that make it fill the room of a job."""

from pathlib import Path

import pytest

from launch.work import Shape, Verb, verb_of, without, work_of
from xinv import config as configs
from xinv.errors import InputError
from xinv.factors import settings as analyses
from xinv.factors.trial import trials_of
from xinv.overrides import dump_yaml
from xinv.search import settings as searches

ROOT = Path(__file__).parent.parent
DEMO, FACTORS = ROOT / "configs" / "demo.yaml", ROOT / "configs" / "factors.yaml"


@pytest.fixture
def search_file(tmp_path: Path) -> Path:
    path = tmp_path / "search.yaml"
    path.write_text(f"name: found\nbase: {DEMO}\nrelease: [gradient]\nplace: {{cpus: 2}}\n")
    return path


def test_a_configuration_says_itself_which_verb_it_is_for(search_file: Path) -> None:
    assert [verb_of(path) for path in (DEMO, search_file, FACTORS)] == [Verb.audit, Verb.search, Verb.factors]


def test_an_audit_asks_for_the_processes_of_its_configuration() -> None:
    work = work_of(Verb.audit, DEMO, ("workers.cpus=3",))
    assert work.shape() == Shape(nodes=1, cpus=6, gpus=0)
    assert work.folder == Path.cwd() / "runs" / "demo"
    assert "cpus=3" not in " ".join(work.placed(work.shape())), "what the command line named is left alone"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape(nodes=2, cpus=4), {"cpus": 1, "gpus": 0, "count": 8}),
        (Shape(nodes=2, cpus=64, gpus=8), {"cpus": 8, "gpus": 1, "count": 16}),
        (Shape(nodes=1, cpus=2, gpus=4), {"cpus": 1, "gpus": 1, "count": 4}),
    ],
)
def test_an_audit_fills_its_room(shape: Shape, expected: dict[str, int]) -> None:
    work = work_of(Verb.audit, DEMO, ())
    found = dict(setting.split("=") for setting in work.placed(shape, "10.0.0.1:6379"))
    assert found == {f"workers.{key}": str(value) for key, value in expected.items()} | {
        "workers.address": "10.0.0.1:6379"
    }


def test_the_processes_that_a_cluster_must_hold_are_those_that_the_command_line_named() -> None:
    work = work_of(Verb.audit, DEMO, ("workers.count=2",))
    assert work.workers(Shape(nodes=4, cpus=8)).count == 2
    assert work_of(Verb.audit, DEMO, ()).workers(Shape(nodes=4, cpus=8)).count == 32


def test_the_snapshot_of_an_audit_is_what_the_file_said_when_it_was_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(DEMO.read_text())
    work = work_of(Verb.audit, file, ("seed=5",))
    file.write_text("name: another\n")
    kept = tmp_path / "kept.yaml"
    kept.write_text(dump_yaml(work.tree))
    found = configs.load(kept, work.placed(Shape(nodes=2, cpus=2, gpus=1)))
    assert (found.name, found.seed, found.workers.count, found.workers.gpus) == ("demo", 5, 2, 1)


def test_the_snapshot_of_a_search_stands_alone_and_its_cluster_is_also_its_bases(
    search_file: Path, tmp_path: Path
) -> None:
    work = work_of(Verb.search, search_file, ("budget.trials=3",))
    kept = tmp_path / "elsewhere" / "kept.yaml"
    kept.parent.mkdir()
    kept.write_text(dump_yaml(work.tree))
    found = searches.load(kept, work.placed(Shape(nodes=2, cpus=8), "10.0.0.1:6379"))
    base = searches.base_audit(found)
    assert (found.budget.trials, found.place.cpus, found.place.address) == (3, 2, "10.0.0.1:6379")
    assert (base.workers.count, base.workers.cpus, base.workers.address) == (8, 2, "10.0.0.1:6379")


def test_the_snapshot_of_an_analysis_of_factors_stands_alone(tmp_path: Path) -> None:
    work = work_of(Verb.factors, FACTORS, ())
    kept = tmp_path / "kept.yaml"
    kept.write_text(dump_yaml(work.tree))
    found = analyses.load(kept, work.placed(Shape(nodes=1, cpus=4), "auto"))
    assert found.trials.address == "auto"
    assert len(trials_of(found).configs) == len(trials_of(analyses.load(FACTORS)).configs)


def test_where_it_runs_is_no_part_of_what_it_is() -> None:
    plain, elsewhere, other = (
        work_of(Verb.audit, DEMO, overrides)
        for overrides in ((), ("workers.count=7", "track.mode=disabled"), ("seed=3",))
    )
    assert plain.identity == elsewhere.identity != other.identity


def test_a_file_that_is_missing_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(InputError, match=rf"reads {gone}, which is not there"):
        work_of(Verb.audit, DEMO, (f"data.source={{kind: idx, folder: {gone}}}",))


def test_a_node_too_small_for_one_process_is_refused() -> None:
    work = work_of(Verb.audit, DEMO, ("workers.cpus=8",))
    with pytest.raises(InputError, match=r"has 8 CPU cores, and a node of the job has 4.*workers\.cpus"):
        work.placed(Shape(nodes=2, cpus=4))


def test_without_leaves_the_rest_as_it_is() -> None:
    tree = {"a": 1, "base": {"workers": {"count": 1}, "seed": 2}, "place": {}}
    assert without(tree, [("place",), ("base", "workers")]) == {"a": 1, "base": {"seed": 2}}
