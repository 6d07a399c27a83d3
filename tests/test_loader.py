"""Partitions as batches: each sample once, whatever memory, world and processes, and what is refused."""

import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from xinv.data import catalog, loader
from xinv.data.index import Index, shard_path
from xinv.data.loader import Batch, Reader, floated
from xinv.data.shards import look_into, read_shard, write_shard
from xinv.errors import InputError


def real_keys(found: list[Batch]) -> list[str]:
    """Keys of the rows that count."""
    return [key for batch in found for key, weight in zip(batch.key, batch.weight_B.tolist(), strict=True) if weight]


def partition_keys(folder: Path, partition: str = "attack") -> list[str]:
    index = Index.load(folder)
    shards = range(len(index.partitions[partition]))
    return [sample["__key__"] for number in shards for sample in read_shard(folder, index, partition, number)]


# --- the reader ------------------------------------------------------------------------------------------------------


def test_batches_hold_what_the_shards_hold(tiny_images, tiny_releases):
    reader = Reader(tiny_images, "attack", tiny_releases, ("grad_cam", "gradient"))
    assert reader.samples == 23 and reader.image_shape == (1, 16, 16) and reader.classes == 4
    assert reader.map_shapes == {"grad_cam": (1, 4, 4), "gradient": (1, 16, 16)}
    truth = {}
    for folder in (tiny_images, tiny_releases):
        index = Index.load(folder)
        for number in range(5):
            for sample in read_shard(folder, index, "attack", number):
                truth.setdefault(sample["__key__"], {}).update(sample)
    for batch in reader.epoch(0, 6):
        size = len(batch.key)
        assert batch.image_BCHW.shape == (size, 1, 16, 16) and batch.image_BCHW.dtype == torch.float32
        assert batch.label_B.dtype == torch.int64 and batch.weight_B.tolist() == [1.0] * size
        assert list(batch.maps) == ["grad_cam", "gradient"]
        for row, key in enumerate(batch.key):
            sample = truth[key]
            expected = torch.from_numpy(sample["png"].astype(np.float32).transpose(2, 0, 1)) / 255
            torch.testing.assert_close(batch.image_BCHW[row], expected, rtol=0, atol=0)
            assert batch.label_B[row] == sample["json"]["label"] and batch.identity[row] == sample["json"]["identity"]
            np.testing.assert_array_equal(batch.prediction_BK[row], sample["prediction.npy"])
            np.testing.assert_array_equal(batch.maps["gradient"][row], sample["gradient.npy"])
            np.testing.assert_array_equal(batch.maps["grad_cam"][row], sample["grad_cam.npy"])


def test_without_releases_there_are_none(tiny_images):
    batch = next(Reader(tiny_images, "victim", purpose="score").once(4))
    assert batch.prediction_BK is None and batch.maps == {}


SMALL = 3 * 5 * 256  # bytes: room for three of the five image shards


@pytest.mark.parametrize("memory_bytes", [2 << 30, SMALL, 1])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_sample_once_an_epoch(tiny_images, world, memory_bytes):
    readers = [Reader(tiny_images, "attack", seed=4, memory_bytes=memory_bytes) for _ in range(world)]
    orders = []
    for epoch in range(2):
        found = [list(reader.epoch(epoch, 4, rank=rank, world=world)) for rank, reader in enumerate(readers)]
        assert len({len(part) for part in found}) == 1
        assert Counter(key for part in found for key in real_keys(part)) == Counter(partition_keys(tiny_images))
        orders.append([real_keys(part) for part in found])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("memory_bytes", [2 << 30, SMALL])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_resume_on_another_world_sees_exactly_the_unseen(tiny_images, world, memory_bytes):
    def reader() -> Reader:
        return Reader(tiny_images, "attack", seed=4, window=10, memory_bytes=memory_bytes)

    seen: list[str] = []
    cursor = 0
    for rank in range(2):
        stream = reader().epoch(1, 4, rank=rank, world=2)
        for _ in range(3):
            batch = next(stream)
            seen += real_keys([batch])
            cursor = batch.cursor
        stream.close()
    assert cursor == 12 and len(seen) == 12
    rest = [list(reader().epoch(1, 4, cursor, rank, world)) for rank in range(world)]
    unseen = Counter(key for part in rest for key in real_keys(part))
    assert Counter(seen) + unseen == Counter(partition_keys(tiny_images))
    # Not only the same samples: the same global batches as a run that was never interrupted.
    whole = list(reader().epoch(1, 4))[3:]
    for number, batch in enumerate(whole):
        assert sorted(batch.key) == sorted(real_keys([part[number] for part in rest]))
        assert {part[number].cursor for part in rest} == {batch.cursor}


def test_resume_at_the_end_of_an_epoch_is_empty(tiny_images):
    for memory_bytes in (2 << 30, 1):
        assert list(Reader(tiny_images, "attack", memory_bytes=memory_bytes).epoch(0, 4, cursor=23)) == []


@pytest.mark.parametrize("memory_bytes", [2 << 30, 1])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_once_reads_in_the_order_of_the_index(tiny_images, world, memory_bytes):
    keys = partition_keys(tiny_images, "victim")
    found = [
        list(Reader(tiny_images, "victim", memory_bytes=memory_bytes, purpose="score").once(4, rank, world))
        for rank in range(world)
    ]
    assert sum(batch.samples for batch in found[0]) == 11
    assert sorted(key for part in found for key in real_keys(part)) == sorted(keys)
    if world == 1:
        assert real_keys(found[0]) == keys


def test_weights_make_sums_independent_of_the_world(tiny_images):
    sums = []
    for world in (1, 2, 3):
        total = 0.0
        for rank in range(world):
            for batch in Reader(tiny_images, "victim", purpose="score").once(4, rank, world):
                total += float((batch.image_BCHW.double().sum(dim=(1, 2, 3)) * batch.weight_B).sum())
        sums.append(total)
    assert max(sums) - min(sums) < 1e-6


def counting(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each key is decoded from now on."""
    decoded: Counter[str] = Counter()
    real = reader._decoders.decode

    def decode(request):
        decoded.update(request.keys)
        return real(request)

    monkeypatch.setattr(reader._decoders, "decode", decode)
    return decoded


def test_a_set_that_fits_is_decoded_once(tiny_images, tiny_releases, monkeypatch):
    reader = Reader(tiny_images, "attack", tiny_releases, ("gradient",))
    decoded = counting(reader, monkeypatch)
    assert reader.fits
    for epoch in range(3):
        list(reader.epoch(epoch, 4))
    assert decoded == Counter(partition_keys(tiny_images))


def test_of_a_set_that_does_not_fit_each_rank_decodes_its_share_once_an_epoch(tiny_images, monkeypatch):
    reader = Reader(tiny_images, "attack", window=100, memory_bytes=SMALL)
    decoded = counting(reader, monkeypatch)
    assert not reader.fits and reader.window == 15
    for epoch in range(2):
        decoded.clear()
        list(reader.epoch(epoch, 4))
        assert decoded == Counter(partition_keys(tiny_images))
    decoded.clear()
    list(reader.epoch(0, 4, rank=1, world=2))
    assert sum(decoded.values()) == 12  # one of them fills up


@pytest.mark.parametrize(("memory", "ahead"), [(SMALL, 3), (11 * 256, 3), (4 * 256, 2), (1, 2)])
def test_no_more_batches_are_decoded_ahead_than_memory_holds(tiny_images, monkeypatch, memory, ahead):
    """Batches of 4 images of 256 bytes: the one that was read, and with one thread two more at most."""
    reader = Reader(tiny_images, "attack", window=100, memory_bytes=memory)
    decoded = counting(reader, monkeypatch)
    stream = reader.epoch(0, 4)
    next(stream)
    time.sleep(0.2)
    assert sum(decoded.values()) <= 4 * ahead
    stream.close()


def test_shards_are_checked_once_and_not_read_after_they_changed(own_images, monkeypatch):
    looks: Counter[int] = Counter()

    def look(folder, index, partition, number):
        looks[number] += 1
        return look_into(folder, index, partition, number)

    monkeypatch.setattr(catalog, "look_into", look)
    reader = Reader(own_images, "attack", memory_bytes=SMALL)
    for epoch in range(3):
        list(reader.epoch(epoch, 4))
    assert looks == dict.fromkeys(range(5), 1)
    path = shard_path(own_images, "attack", 3)
    path.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"attack/000003\.tar has changed since it was checked"):
        list(reader.epoch(3, 4))


def test_facts_beyond_what_is_remembered_are_looked_up_again(tiny_images, monkeypatch):
    monkeypatch.setattr(catalog, "REMEMBERED", 11)
    reader = Reader(tiny_images, "attack", memory_bytes=SMALL)
    for epoch in range(2):
        assert sorted(real_keys(list(reader.epoch(epoch, 4)))) == sorted(partition_keys(tiny_images))
        assert sum(len(facts.key) for facts in reader._catalog._known.values()) <= 11


# --- processes that decode -------------------------------------------------------------------------------------------


def same(left: Batch, right: Batch) -> None:
    assert (left.key, left.identity, left.samples, left.cursor) == (
        right.key,
        right.identity,
        right.samples,
        right.cursor,
    )
    torch.testing.assert_close(
        [left.image_BCHW, left.label_B, left.weight_B, left.prediction_BK, *left.maps.values()],
        [right.image_BCHW, right.label_B, right.weight_B, right.prediction_BK, *right.maps.values()],
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("decoders", [1, 3])
def test_processes_give_the_same_batches(tiny_images, tiny_releases, decoders):
    options = {"window": 10, "memory_bytes": 15 * 1500, "seed": 3}
    alone = Reader(tiny_images, "attack", tiny_releases, ("gradient", "grad_cam"), **options)
    helped = Reader(tiny_images, "attack", tiny_releases, ("gradient", "grad_cam"), **options, decoders=decoders)
    assert not helped.fits
    for cursor in (0, 8):
        pairs = zip(alone.epoch(1, 4, cursor), helped.epoch(1, 4, cursor), strict=True)
        for left, right in pairs:
            same(left, right)
    assert len(helped._decoders._all) == decoders


def test_a_large_set_that_fits_is_decoded_by_processes_too(tiny_images, tiny_releases, monkeypatch):
    monkeypatch.setattr(loader, "WORTH", 1)
    helped = Reader(tiny_images, "attack", tiny_releases, ("gradient",), decoders=2, limit=13)
    alone = Reader(tiny_images, "attack", tiny_releases, ("gradient",), limit=13)
    assert helped.fits
    for epoch in range(2):
        for left, right in zip(alone.epoch(epoch, 4), helped.epoch(epoch, 4), strict=True):
            same(left, right)
    assert len(helped._decoders._all) == 2


def test_integers_stay_as_they_are_stored_until_they_are_wanted(tiny_images, tiny_releases):
    plain = Reader(tiny_images, "attack", tiny_releases, ("gradient",))
    stored = Reader(tiny_images, "attack", tiny_releases, ("gradient",), as_stored=True)
    for left, right in zip(plain.once(4), stored.once(4), strict=True):
        assert right.image_BCHW.dtype == torch.uint8
        same(left, floated(right))


def test_the_window_does_not_depend_on_the_world_and_the_order_not_on_who_reads(tiny_images):
    small = [Reader(tiny_images, "attack", memory_bytes=SMALL) for _ in range(2)]
    whole = [real_keys([batch]) for batch in small[0].epoch(0, 6)]
    halves = [[real_keys([batch]) for batch in small[1].epoch(0, 6, rank=rank, world=2)] for rank in range(2)]
    for number, keys in enumerate(whole):
        assert sorted(keys) == sorted(halves[0][number] + halves[1][number])


def test_two_iterators_of_one_reader_do_not_disturb_each_other(tiny_images):
    reader = Reader(tiny_images, "attack", memory_bytes=SMALL)
    pairs = list(zip(reader.epoch(0, 4), reader.epoch(1, 4), strict=True))
    for side in range(2):
        assert sorted(real_keys([pair[side] for pair in pairs])) == partition_keys(tiny_images)


# --- what it refuses -------------------------------------------------------------------------------------------------


def test_damaged_shard_stops_the_reader(own_images):
    path = shard_path(own_images, "attack", 4)
    path.write_bytes(path.read_bytes()[:-512])
    for memory_bytes in (2 << 30, 1):
        with pytest.raises(InputError, match=r"attack/000004\.tar"):
            list(Reader(own_images, "attack", memory_bytes=memory_bytes).epoch(0, 4))


@pytest.mark.parametrize("swap", ["order", "keys"])
def test_releases_of_other_images_are_refused(tiny_images, tiny_releases, tmp_path, swap):
    folder = Path(shutil.copytree(tiny_releases, tmp_path / "releases"))
    index = Index.load(folder)
    samples = read_shard(folder, index, "attack", 2)
    if swap == "order":
        samples[0], samples[1] = samples[1], samples[0]
    else:
        samples[0]["__key__"] = "99999999"
    entry = write_shard(shard_path(folder, "attack", 2), samples)
    entries = list(index.partitions["attack"])
    entries[2] = entry
    index.model_copy(update={"partitions": {**index.partitions, "attack": tuple(entries)}}).save(folder)
    reader = Reader(tiny_images, "attack", folder, ("gradient",))
    with pytest.raises(InputError, match=r"attack/000002\.tar has the key .* where the image shard"):
        list(reader.once(4))


def test_releases_with_other_counts_are_refused(tiny_images, tiny_releases, tmp_path):
    folder = Path(shutil.copytree(tiny_releases, tmp_path / "releases"))
    index = Index.load(folder)
    index.model_copy(update={"partitions": {**index.partitions, "attack": index.partitions["attack"][:-1]}}).save(
        folder
    )
    with pytest.raises(InputError, match="does not belong to"):
        Reader(tiny_images, "attack", folder)


def test_unknown_names_list_the_known_ones(tiny_images, tiny_releases):
    with pytest.raises(InputError, match="no partition 'test' in this set; it has target"):
        Reader(tiny_images, "test")
    with pytest.raises(InputError, match="no maps named 'lrp'; it has gradient, grad_cam"):
        Reader(tiny_images, "attack", tiny_releases, ("lrp",))
    with pytest.raises(InputError, match="need a release set"):
        Reader(tiny_images, "attack", None, ("gradient",))
    with pytest.raises(InputError, match="expected a set of images"):
        Reader(tiny_releases, "attack")
    with pytest.raises(InputError, match="expected a set of releases"):
        Reader(tiny_images, "attack", tiny_images)


def test_arguments_are_checked_at_the_call_not_at_the_first_batch(tiny_images):
    with pytest.raises(InputError, match="no batches of 0"):
        Reader(tiny_images, "attack").epoch(0, 0)


def test_victims_open_for_scoring_alone(tiny_images):
    for partition in ("victim", "victim_validation"):
        with pytest.raises(InputError, match=f"{partition}.* is kept for scoring: nothing may be trained"):
            Reader(tiny_images, partition)
    assert Reader(tiny_images, "victim", purpose="score").samples == 11


@pytest.mark.parametrize("objective", ["classify", "invert"])
def test_the_training_loop_cannot_read_the_victims(tiny_images, tiny_releases, tmp_path, objective):
    """Whatever is trained: the loop opens its partition for training before anything else."""
    from xinv.nets.classifier import ClassifierSettings
    from xinv.nets.inverter import PRESETS
    from xinv.train.loop import TrainJob, train
    from xinv.train.settings import TrainingSettings
    from xinv.train.weights import ClassifierSpec, InverterSpec

    specs = {
        "classify": ClassifierSpec(settings=ClassifierSettings(width=4), channels=1, size=16, classes=4),
        "invert": InverterSpec(design=PRESETS["prediction_only"], channels=1, size=16, classes=4, methods=(), maps=()),
    }
    job = TrainJob(
        folder=tmp_path / "job",
        objective=objective,
        network=specs[objective],
        images=tiny_images,
        releases=tiny_releases if objective == "invert" else None,
        partition="victim",
        settings=TrainingSettings(epochs=1),
        seed=0,
    )
    with pytest.raises(InputError, match="is kept for scoring"):
        train(job)
    assert not (tmp_path / "job" / "weights.safetensors").exists()


@pytest.mark.parametrize("memory_bytes", [1, 2 << 30])
def test_a_limit_reads_the_first_samples_alone(tiny_images, tiny_releases, memory_bytes):
    keys = partition_keys(tiny_images)
    reader = Reader(tiny_images, "attack", tiny_releases, ("gradient",), limit=13, memory_bytes=memory_bytes)
    assert reader.samples == 13
    assert real_keys(list(reader.once(4))) == keys[:13]
    assert sorted(real_keys(list(reader.epoch(0, 4)))) == sorted(keys[:13])
    assert Reader(tiny_images, "attack", limit=len(keys)).samples == len(keys)
    for wrong in (0, len(keys) + 1):
        with pytest.raises(InputError, match=rf"{wrong} images of the partition 'attack' .* it has {len(keys)}"):
            Reader(tiny_images, "attack", limit=wrong)


@pytest.mark.parametrize("memory_bytes", [2 << 30, 1500])
def test_samples_are_read_in_the_order_asked_for(tiny_images, tiny_releases, memory_bytes):
    reader = Reader(tiny_images, "attack", tiny_releases, ("gradient",), memory_bytes=memory_bytes)
    (whole,) = Reader(tiny_images, "attack", tiny_releases, ("gradient",)).once(23)
    places = np.array([22, 0, 7, 7, 3, 12, 1])
    found = list(reader.at(places, 3))
    assert [len(batch.key) for batch in found] == [3, 3, 1]
    assert [key for batch in found for key in batch.key] == [whole.key[place] for place in places]
    torch.testing.assert_close(torch.cat([batch.maps["gradient"] for batch in found]), whole.maps["gradient"][places])
