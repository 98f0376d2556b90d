"""seap serve: loads what it serves, binds, and runs until it is told to stop."""

import copy
import gc
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from seap.errors import UserError, missing_extra, unknown
from seap.methods import MaskOf
from seap.models import loader
from seap.models.layouts import Layouts
from seap.serving.networks.network import Network, load_networks, unrepaired
from seap.serving.networks.runtime import DENSE, TaskRuntime
from seap.serving.options import Access, Connections, Limits, Serving
from seap.serving.routing.router import Router, load_router
from seap.serving.scheduling.scheduler import Scheduler
from seap.serving.server.access import BACKEND_KEY_VARIABLE, Guard, make_guard, read_keys
from seap.serving.server.hosts import is_loopback

DEMO: dict[str, Any] = {"sparsity": 0.4, "allocate": "logistic", "sequential": False}  # quick to make, and good enough


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError where there is none to be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((host, port), family=family, backlog=2048)
        # asyncio sets it on sockets that say they are TCP, which create_server's don't; connections take it from here
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return bound
    except OSError as error:
        raise UserError(f"can't listen on {host} port {port}: {error.strerror or error}; try --port 0") from error


def make_scheduler(
    model: Any,
    tokenizer: Any,
    networks: dict[str, Network],
    router: Router | None,
    options: Serving,
    limits: Limits,
    *,
    masks: Path | None = None,
) -> Scheduler:
    """The runtime and the scheduler over it. Raises UserError for a fallback without a network.

    masks: the networks' folder, where it is kept which layout of the weights is faster on this processor.
    """
    cache = None if options.cache_mb is None else options.cache_mb << 20
    layouts = Layouts.beside(masks) if masks is not None and masks.is_dir() else Layouts()
    runtime = TaskRuntime(
        model, networks, min_slice_bytes=options.min_slice_kb << 10, cache_bytes=cache, layouts=layouts
    )
    return Scheduler(runtime, tokenizer, limits, router=router, fallback=options.fallback or DENSE)


def check(name: str, options: Serving, masks: Path | None, router: Path | None) -> None:
    """Refuse what doesn't go together before anything loads."""
    if options.demo and (masks or router or name != loader.BUILTIN):
        raise UserError("--demo makes its own networks and router, for the built-in model; leave the others out")
    if options.backend is not None and (masks or options.demo or router is None):
        raise UserError("--backend runs the router alone: give --router FILE, and neither --masks nor --demo")
    if (options.backend_key is not None or options.backend_key_file is not None) and options.backend is None:
        raise UserError("--backend-key has no effect without --backend; leave it out")
    if not options.demo and masks is None and options.backend is None:
        raise UserError("no networks to serve: add --masks DIR (of seap pack or seap mask), or try --demo")


def serve(
    name: str,
    options: Serving,
    limits: Limits,
    access: Access,
    grants: Connections,
    *,
    masks: Path | None = None,
    router: Path | None = None,
    loading: dict[str, Any] | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Serve a model with its tasks' networks until SIGINT or SIGTERM; `tell` gets what the user should know."""
    try:
        from seap.serving.server.app import Service, create_app
        from seap.serving.server.forward import create_forwarder
    except ImportError as error:
        raise missing_extra("fastapi with uvicorn", "serve", "seap serve") from error
    guard = make_guard(access, options.host, os.environ)
    bound = bind(options.host, options.port)
    for text in exposed(options.host, guard):
        tell(text)

    def run(app: Any) -> None:
        from seap.serving.server.draining import make_server

        server = make_server(app, grants, drain_seconds=options.drain_seconds, trusted_proxy=access.trusted_proxy)
        gc.collect()
        gc.freeze()  # a look at all that was loaded, which stays, would hold every thread up for half a second
        try:
            server.run(sockets=[bound])
        finally:
            gc.unfreeze()

    model, tokenizer = loader.load_for_work(name, **(loading or {}))
    if options.backend is not None and router is not None:
        found = find_forwarder(model, tokenizer, load_router(router, model), options, tell)
        run(create_forwarder(replace(found, guard=guard, grants=grants, limits=limits)))
        return
    networks, guide = _parts(model, tokenizer, masks, router, tell)
    scheduler = make_scheduler(model, tokenizer, networks, guide, options, limits, masks=masks)
    service = Service(
        scheduler=scheduler,
        tokenizer=tokenizer,
        name=name,
        guard=guard,
        grants=grants,
        drain_seconds=options.drain_seconds,
    )
    for text in notes(scheduler):
        tell(text)
    tell(f"serving {', '.join(service.models)} at {address(bound)}/v1")
    run(create_app(service))


def address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def find_forwarder(model: Any, tokenizer: Any, router: Router, options: Serving, tell: Callable[[str], None]) -> Any:
    """The forwarder to its backends; asks a lone one for its models first."""
    import asyncio

    from seap.serving.server.forward import Forwarder, find_backends

    assert options.backend is not None
    [key] = read_keys(
        options.backend_key, options.backend_key_file, os.environ.get(BACKEND_KEY_VARIABLE), "--backend-key"
    ) or (None,)
    backends = asyncio.run(find_backends(options.backend, key))
    fallback = options.fallback or (DENSE if DENSE in backends else next(iter(backends)))
    if fallback not in backends:
        raise unknown("fallback", fallback, backends)
    missing = [task for task in router.tasks if task not in backends]
    if missing:
        tell(f"no backend for {', '.join(missing)}: they go to {fallback}")
    tell(f"forwarding {', '.join(backends)}; what the router gives to no task goes to {fallback}")
    return Forwarder(
        backends=backends, router=router, model=model, tokenizer=tokenizer, fallback=fallback, backend_key=key
    )


def _parts(
    model: Any, tokenizer: Any, masks: Path | None, router: Path | None, tell: Callable[[str], None]
) -> tuple[dict[str, Network], Router | None]:
    if masks is None:
        return demo_parts(model, tokenizer, tell)
    return load_networks(masks, model), load_router(router, model) if router else None


def exposed(host: str, guard: Guard) -> list[str]:
    """A warning where others than this machine can reach a server without a key."""
    if is_loopback(host) or guard.keys:
        return []
    return [
        f"listening on {host} without a key: whoever reaches this machine can use the model; set SEAP_API_KEY, or give "
        "--api-key-file"
    ]


def notes(scheduler: Scheduler) -> list[str]:
    """What the user should know before clients come."""
    found = []
    if bare := unrepaired(scheduler.runtime.networks):
        found.append(f"{', '.join(bare)}: masks without the reconstruction of their method; seap pack adds it")
    if scheduler.router is None:
        found.append("no --router: requests name their task as the model; auto is not offered")
    else:
        strange = [task for task in scheduler.router.tasks if task not in scheduler.runtime.tasks]
        if strange:
            found.append(
                f"the router knows {', '.join(strange)}, which have no network: they run on {scheduler.fallback}"
            )
    return found


def demo_parts(model: Any, tokenizer: Any, tell: Callable[[str], None]) -> tuple[dict[str, Network], Router]:
    """Networks of the built-in model's tasks, a general one, and a router; made in less than a minute."""
    from seap.pruning.prune import calibrate, prune
    from seap.serving.networks.network import network_between
    from seap.serving.options import Routing
    from seap.serving.routing.routing import make_router
    from seap.text.builtin import TASKS

    tell(f"demo: {DEMO['sparsity']:.0%} of the built-in model is cut out for each of its nine tasks; some minutes …")
    statistics = calibrate(model, tokenizer, list(TASKS), progress=False, max_tokens=2000, second_moments=True)
    plans = {task: {task: part} for task, part in statistics.items()} | {"general": statistics}
    networks = {}
    for task, parts in plans.items():
        pruned = copy.deepcopy(model)
        mask: MaskOf = "general" if task == "general" else "task"
        report = prune(pruned, statistics=parts, measure_damage=False, progress=False, mask=mask, **DEMO)
        networks[task] = network_between(model, pruned, report.masks)
    return networks, make_router(model, tokenizer, list(TASKS), Routing(num_prompts=200))
