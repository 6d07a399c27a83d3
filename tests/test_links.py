"""Ranks talk over the interface that Ray's address is on, unless the user has named one."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from xinv import parallel

parallel.secure()

from xinv.interface import interface_of  # noqa: E402
from xinv.train.links import choose_interface  # noqa: E402

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def two_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two cards, and no variable set."""
    cards = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.7", "fe80::1%eth0"], "ib0:1": ["10.1.0.7"]}
    addresses = {name: [SimpleNamespace(address=one) for one in found] for name, found in cards.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")


def on_node(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """This process is on the second of a cluster's nodes, which Ray knows by an address."""
    nodes = [{"NodeID": "a", "NodeManagerAddress": "10.0.0.1"}, {"NodeID": "b", "NodeManagerAddress": address}]
    context = SimpleNamespace(get_node_id=lambda: "b")
    ray: Any = sys.modules["ray"]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)


def test_the_interface_of_an_address() -> None:
    assert [interface_of(one) for one in ("10.0.0.7", "fe80::1", "10.1.0.7")] == ["eth0", "eth0", "ib0"]
    assert interface_of("192.168.1.1") is None


def test_a_rank_takes_the_interface_of_its_own_node(monkeypatch: pytest.MonkeyPatch) -> None:
    on_node(monkeypatch, "10.0.0.7")
    choose_interface()
    assert [os.environ[name] for name in VARIABLES] == ["eth0", "=eth0"]


def test_what_the_user_has_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    on_node(monkeypatch, "10.0.0.7")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    choose_interface()
    assert [os.environ[name] for name in VARIABLES] == ["eth0", "ib0"]


def test_an_address_that_no_interface_has_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    on_node(monkeypatch, "203.0.113.9")
    choose_interface()
    assert [os.environ[name] for name in VARIABLES] == ["", ""]
