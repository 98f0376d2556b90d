"""Who is answered: keys, hosts and origins from the options, and which client a request counts for."""

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seap.errors import UserError
from seap.serving.options import Access
from seap.serving.server.hosts import LOOPBACK, allowed_hosts

KEY_VARIABLE = "SEAP_API_KEY"
BACKEND_KEY_VARIABLE = "SEAP_BACKEND_KEY"


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Whom a server answers. keys: none needs none; hosts, origins: see `hosts.py`."""

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = LOOPBACK
    origins: tuple[str, ...] = ()

    def key_of(self, authorization: bytes) -> int | None:
        """The place of the key that was sent, in a time that doesn't depend on it; None where it is none of them."""
        kind, _, given = authorization.strip().partition(b" ")
        fits = [hmac.compare_digest(given.strip(), key.encode()) for key in self.keys]
        return fits.index(True) if kind.lower() == b"bearer" and any(fits) else None

    def client_of(self, scope: Mapping[str, Any], key: int | None) -> str:
        """Which client a request counts for: the key where there are several, else the address (in IPv6 its /64)."""
        if key is not None and len(self.keys) > 1:
            return f"key {key + 1}"
        address = (scope.get("client") or ("",))[0]
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return str(address)
        return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


def make_guard(options: Access, host: str, environment: Mapping[str, str]) -> Guard:
    """Raises UserError for keys and origins that can't be."""
    for origin in options.allow_origin:
        if origin != "*" and ("://" not in origin or origin.rstrip("/").count("/") != 2):
            raise UserError(f"--allow-origin {origin}: give scheme and host, such as https://example.org, or *")
    for name in options.allowed_host:
        if not name or "/" in name or ("*" in name.removeprefix("*.") and name != "*"):
            raise UserError(f"--allowed-host {name}: give a name such as example.org or *.example.org, or *")
    return Guard(
        keys=read_keys(options.api_key, options.api_key_file, environment.get(KEY_VARIABLE), "--api-key"),
        hosts=allowed_hosts(host, options.allowed_host),
        origins=tuple(origin.rstrip("/").lower() for origin in options.allow_origin),
    )


def read_keys(given: str | None, file: Path | None, variable: str | None, option: str) -> tuple[str, ...]:
    """The keys of an option, of a file with one a line, or of an environment variable where there is neither."""
    if given is not None and file is not None:
        raise UserError(f"{option} and {option}-file: give one of them")
    if file is not None:
        try:
            keys = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{option}-file {file}: can't be read as text ({error})") from error
        keys = [key for key in keys if key and key[0] != "#"]
        if not keys:
            raise UserError(f"{option}-file {file}: has no key; write one a line")
    else:
        keys = [key for key in (given, variable) if key is not None][:1]
    if any(not key.strip() for key in keys):
        raise UserError(f"{option} is empty; give a key, or leave it out")
    return tuple(dict.fromkeys(key.strip() for key in keys))
