"""Host and Origin headers: which names the server answers to, and which web pages may use it.

A web page whose name an attacker points at 127.0.0.1 (DNS rebinding) is of the same origin as the server to the
browser, but the Host header still has that name. A page of another origin says so in Origin.
"""

import ipaddress
from collections.abc import Collection

LOOPBACK = ("localhost", "*.localhost", "127.0.0.1", "::1")
ANY = "*"


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str, given: Collection[str]) -> tuple[str, ...]:
    """What Host may name on a server that listens on `host`: what was given, and loopback names in any case."""
    if not given and not is_loopback(host):
        return (ANY,)
    return (*LOOPBACK, host.lower(), *(name_of(name) for name in given))


def name_of(host: str) -> str:
    """A Host header without port, brackets and final dot, in small letters."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return (name if name and ":" not in name and port.isdigit() else host).rstrip(".")


def host_fits(host: str | None, allowed: Collection[str]) -> bool:
    """Whether a Host header is among the names; *.x has the subdomains of x."""
    if ANY in allowed:
        return True
    name = name_of(host or "")
    return name in allowed or any(one[:2] == "*." and name.endswith(one[1:]) for one in allowed)


def origin_fits(origin: str, host: str | None, allowed: Collection[str]) -> bool:
    """Whether a page of this origin may use the server: its own page, and what was allowed."""
    own = origin.partition("://")[2].lower()
    return ANY in allowed or origin.lower() in allowed or (bool(own) and own == (host or "").lower())
