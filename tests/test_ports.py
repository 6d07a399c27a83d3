"""Ports of jobs: a slot each, found free by asking the system."""

import socket

import pytest

from launch import ports
from launch.ports import free_ports, is_free, listens, ports_of
from xinv.errors import WorkError


def test_slots_are_apart_and_below_what_the_system_gives() -> None:
    seen: set[int] = set()
    for slot in range(ports.SLOTS):
        found = ports_of(slot)
        own = {found.gcs, found.dashboard, found.client}
        assert len(own) == 3 and not own & seen and max(own) < 32_768 and min(own) > 1024
        seen |= own
    assert ports_of(ports.SLOTS + 3).gcs == ports_of(3).gcs


def test_a_slot_in_use_is_passed_over() -> None:
    mine = free_ports(70, "127.0.0.1")
    with socket.socket() as other:
        other.bind(("127.0.0.1", mine.dashboard))
        other.listen()
        assert not is_free(mine.dashboard, "127.0.0.1") and listens("127.0.0.1", mine.dashboard)
        after = free_ports(70, "127.0.0.1")
        assert after.slot > mine.slot
    assert free_ports(70, "127.0.0.1", after=after.slot + 1 - 70).slot > after.slot
    assert not listens("127.0.0.1", mine.dashboard)


def test_none_free_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda port, address: False)
    with pytest.raises(WorkError, match=r"No ports are free on 10.0.0.1 between 20008 and"):
        free_ports(1, "10.0.0.1")
