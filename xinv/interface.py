"""Network interfaces of this machine. Imports neither Ray nor torch: a launcher asks before either is there."""

import psutil


def interface_of(address: str) -> str | None:
    """The network interface that has an address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name.partition(":")[0]  # an alias is the interface that it is one of
    return None
