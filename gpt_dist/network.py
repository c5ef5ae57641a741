"""This host's network interfaces, and the one that reaches the other hosts of a run."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

import psutil

LOOPBACK = "127.0.0.1"


def choose_interface(own: str, addresses: Sequence[str]) -> str | None:
    """Return the interface of this host by which a process reaches the others of its run.

    Args:
        own: the address from which this process reached rank 0; LOOPBACK on a host whose own name
            resolves to a loopback address, as it does on Debian.
        addresses: the same of every process.

    Returns:
        The loopback interface where all processes are on one host, and None where no interface of
        this host has the address.
    """
    if set(addresses) == {own}:
        return _interface_of(LOOPBACK)
    if is_loopback(own):
        own = _address_towards(next(other for other in addresses if not is_loopback(other)))
    return _interface_of(own)


def is_loopback(address: str) -> bool:
    """Return whether an IP address leads to this machine alone."""
    return ipaddress.ip_address(address).is_loopback


def _address_towards(peer: str) -> str:
    """Return the address from which this host sends to `peer`."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # sends nothing: it asks for the route
        return str(probe.getsockname()[0])


def _interface_of(address: str) -> str | None:
    for name, found in psutil.net_if_addrs().items():
        if address in (entry.address for entry in found):
            return name
    return None
