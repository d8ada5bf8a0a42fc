"""HTTP for fsspec that reaches public addresses alone, whoever names them: a URL, a name's record, or a redirect."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

import aiohttp

# IPv6 addresses that stand for an IPv4 address, which may be private: mapped, compatible, translated, 6to4, Teredo.
_STANDS_FOR_IPV4 = [
    ipaddress.ip_network(n) for n in ("::/96", "::ffff:0:0/96", "64:ff9b::/32", "2002::/16", "2001::/32")
]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's: not of this machine, its network or for another purpose."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _STANDS_FOR_IPV4)


def public_socket(address_info: tuple[Any, ...]) -> socket.socket:
    """A socket for the address that is about to be connected to; PermissionError unless it is public.

    This is asked for each connection, once its name is resolved, so neither names nor redirects lead around it.
    """
    family, kind, protocol, _, address = address_info
    if not is_public(address[0]):
        raise PermissionError(errno.EACCES, f"{address[0]} is no public address; nothing is read from it")
    return socket.socket(family=family, type=kind, proto=protocol)


async def public_session(**settings: Any) -> aiohttp.ClientSession:
    """What `get_client` of fsspec's HTTP file system is to be."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=public_socket), **settings)
