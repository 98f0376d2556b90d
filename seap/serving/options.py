"""Options of the commands that route, pack and serve. Imports no torch.

Field docstrings become the help texts of the command line.
"""

from dataclasses import dataclass
from pathlib import Path

from seap.errors import UserError, at_least
from seap.shares import Share

USUAL_DEPTH = 2  # eight kinds of text, one unknown: noticed 35%, 60% and 80% with 0, 1 and 2 (docs/serving.md)


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a router is made."""

    num_prompts: int = 256
    """Most prompts per task to learn from; as many others are held out to test it."""
    depth: int | None = None
    """First layers whose output is a feature too; by default 2, or those that no network of --masks changes where they
    are more. 0 reads embeddings alone: nearly free, but unknown tasks are noticed far less often."""
    max_prompt_tokens: int = 256
    """Tokens of a prompt that the router reads, from its beginning."""
    abstain: Share = 0.02
    """Share of held-out prompts of the known tasks that may be given up; what is less sure than those is no task's."""
    plain: bool = False
    """Learn from the prompts as they are alone, not also wrapped in a chat, without template, shortened and altered."""
    router_seed: int = 0
    """Draws the prompts and the words that altered ones lose."""

    def __post_init__(self) -> None:
        at_least("num_prompts", self.num_prompts, 10)
        at_least("max_prompt_tokens", self.max_prompt_tokens, 1)
        if self.depth is not None:
            at_least("depth", self.depth, 0)
        if not 0 <= self.abstain < 0.5:
            raise UserError(f"--abstain {self.abstain}: must be at least 0 and below 0.5, such as 0.02")


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What a network may own beside the dense model, whose weights all networks share."""

    share: Share | None = None
    """Most parameters of a network's own, as a share of the dense model's, such as 0.025: reconstruction then goes into
    corrections of low rank, the best ones first. By default every weight that reconstruction changed is its own."""

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"--share {self.share}: must be above 0 and at most 1, such as 0.025")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a server takes on at once."""

    max_rows: int = 64
    """Requests of one task that are decoded together."""
    max_tokens_in_flight: int = 32_768
    """Tokens, prompts and answers, that the KV caches may have room for: each row of a task's batch takes as much as
    the longest that is there at the time."""
    max_queue: int = 256
    """Requests that may wait; beyond it the answer is 429."""
    max_queued_tokens: int = 262_144
    """Tokens, prompts and answers, that may wait; beyond it the answer is 429."""
    prefill_tokens: int = 2048
    """Tokens of prompts that are read together, each as long as the longest; one that is longer is read alone."""
    steps: int = 4
    """Tokens that a task's rows get before another task's turn."""
    retry_after: int = 1
    """Least seconds that a client is told to wait before it tries again."""
    client_share: Share = 0.75
    """What one client may take of each of these limits, and of the connections, by its key or address: so much of what
    the others leave."""

    def __post_init__(self) -> None:
        names = ("max_rows", "max_tokens_in_flight", "max_queue", "max_queued_tokens", "prefill_tokens", "steps")
        for name in (*names, "retry_after"):
            at_least(name, getattr(self, name), 1)
        if not 0 < self.client_share <= 1:
            raise UserError(f"--client-share {self.client_share}: must be above 0 and at most 1, such as 0.75")


@dataclass(frozen=True, kw_only=True)
class Connections:
    """How long a server waits for its clients, and how much of them it holds."""

    max_connections: int = 512
    """Connections at a time. Where all are taken, one that does nothing gives way to a new one."""
    header_timeout: float = 10.0
    """Seconds within which a request's headers must have arrived."""
    body_timeout: float = 30.0
    """Seconds after its headers within which a request's body must have arrived."""
    idle_timeout: float = 30.0
    """Seconds that a connection may do nothing between requests, or take nothing of its answer."""
    max_body_mb: int = 8
    """Most megabytes of a request's body; beyond it the answer is 413. Bodies that are being read may have eight times
    as much in all; beyond that it is 429."""

    def __post_init__(self) -> None:
        at_least("max_connections", self.max_connections, 1)
        at_least("max_body_mb", self.max_body_mb, 1)
        for name in ("header_timeout", "body_timeout", "idle_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                option = name.replace("_", "-")
                raise UserError(f"--{option} {getattr(self, name)}: must be a number of seconds above 0, such as 30")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Whom a server answers."""

    api_key: str | None = None
    """Key that clients must send, as Authorization: Bearer KEY. Other users of this machine see it in the list of
    processes; the environment variable SEAP_API_KEY, or --api-key-file, don't show it."""
    api_key_file: Path | None = None
    """File with one key a line, for a client each: what one client may take is then counted by key, not by address."""
    allowed_host: tuple[str, ...] = ()
    """Name under which clients may ask for this server, without port; may be repeated; *.example.org is its subdomains
    and * is any. By default localhost and loopback addresses where --host is one, so that no web page can reach it by a
    name of its own; any name otherwise."""
    allow_origin: tuple[str, ...] = ()
    """Origin of web pages that may use this server, such as https://example.org; may be repeated; * is any. By default
    its own page alone."""
    trusted_proxy: tuple[str, ...] = ()
    """Address of a proxy whose X-Forwarded-For is believed, so that its clients count one by one; may be repeated."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a server listens, and what it holds."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one, and wants a key."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    fallback: str | None = None
    """Network of requests that the router gives to no task; dense by default."""
    min_slice_kb: int = 256
    """Kilobytes that slices of a dense weight have in the mean where a linear is made of several; below it, a network
    gets a packed copy. 0 never packs for that: the least memory, slower where the weights are small."""
    cache_mb: int | None = None
    """Most megabytes of packed copies; the network used longest ago goes first. No limit by default."""
    drain_seconds: float = 30.0
    """How long running requests may take to finish when the server is told to stop."""
    backend: str | None = None
    """Run the router alone and forward: a URL that ends in /v1, or a JSON file of task → URL or {"url", "model"}."""
    backend_key: str | None = None
    """Key to send to the backends; the environment variable SEAP_BACKEND_KEY doesn't show it to other users."""
    backend_key_file: Path | None = None
    """File with the key to send to the backends."""
    demo: bool = False
    """Serve the built-in model with networks of its nine tasks and a router, made on the spot."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UserError(f"--port {self.port}: must be from 0 to 65535")
        at_least("min_slice_kb", self.min_slice_kb, 0)
        if self.cache_mb is not None:
            at_least("cache_mb", self.cache_mb, 0)
        if self.drain_seconds < 0:
            raise UserError(f"--drain-seconds {self.drain_seconds}: must be 0 or more")
