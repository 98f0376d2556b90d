"""The commands around one model with many tasks, over files: what can be refused is refused before anything loads."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from seap.disk.claim import claimed
from seap.environment import provenance
from seap.errors import UserError
from seap.evaluation.evaluate import load_test
from seap.evaluation.options import Evaluation
from seap.files import check_suffix, write_json
from seap.models import loader
from seap.models.arch import describe
from seap.serving.networks.network import free_layers, load_networks
from seap.serving.networks.runtime import DENSE, TaskRuntime
from seap.serving.options import Routing
from seap.serving.routing.endtoend import end_to_end
from seap.serving.routing.router import load_router
from seap.serving.routing.routing import load_prompts, make_router, seconds_per_prompt
from seap.text.decoding import without_halves
from seap.text.sources import sources_of

Options = Mapping[str, Any]
ROUTING = "route-eval"


def fit_router(
    name: str,
    tasks: Sequence[str],
    out: Path,
    options: Routing,
    *,
    masks: Path | None = None,
    overwrite: bool = False,
    loading: Options | None = None,
) -> dict[str, Any]:
    """`seap route fit`: write the router; its report is returned, and but for the time stands in its metadata."""
    check_suffix(out, ".safetensors")
    with claimed(out, "router", overwrite=overwrite, inputs=sources_of(name, tasks, [masks])):
        prompts = load_prompts(tasks, "test", options)
        model, tokenizer = loader.load_for_work(name, **(loading or {}))
        networks = {} if masks is None else load_networks(masks, model)
        free = free_layers(networks, len(describe(model).layers)) if networks else 0
        router = make_router(model, tokenizer, tasks, options, free=free)
        router.save(out)
    told = {"tasks": list(router.tasks), "depth": router.depth, "threshold": router.threshold, "limit": router.limit}
    some = [prompt for part in prompts.values() for prompt in part[:10]]
    took = {"seconds_per_prompt": seconds_per_prompt(router, model, tokenizer, some)}
    return told | dict(router.about["report"]) | took


def predict_routes(
    name: str, prompts: Sequence[str], path: Path, *, loading: Options | None = None
) -> list[dict[str, Any]]:
    """`seap route predict`: one route a prompt."""
    if not prompts:
        raise UserError("no prompt to route: give one or more after the model")
    load_router(path)
    model, tokenizer = loader.load_for_work(name, **(loading or {}))
    readable = [without_halves(prompt) for prompt in prompts]
    return [asdict(route) for route in load_router(path, model).predict(model, tokenizer, readable)]


def evaluate_routing(
    name: str,
    tasks: Sequence[str],
    router: Path,
    masks: Path,
    options: Evaluation,
    *,
    fallback: str = DENSE,
    out: Path | None = None,
    overwrite: bool = False,
    loading: Options | None = None,
) -> dict[str, Any]:
    """`seap route eval`: the tasks' tests on the routed networks, beside the true task's and the dense model.

    out: a JSON file for the result.
    """
    place: Any = contextlib.nullcontext()
    if out is not None:
        reads = sources_of(name, tasks, [router, masks])
        place = claimed(out, ROUTING, overwrite=overwrite, inputs=reads)
    with place:
        found = _evaluate_routing(name, tasks, router, masks, options, fallback, loading or {})
        if out is not None:
            write_json(out, found)
    return found


def _evaluate_routing(
    name: str,
    tasks: Sequence[str],
    router: Path,
    masks: Path,
    options: Evaluation,
    fallback: str,
    loading: Options,
) -> dict[str, Any]:
    tests = [load_test(spec, options) for spec in tasks]
    tests = [replace(test, items=test.items[: options.num_items]) for test in tests]
    load_router(router)
    model, tokenizer = loader.load_for_work(name, **loading)
    guide = load_router(router, model)
    networks = load_networks(masks, model)
    if fewer := [name for name, network in networks.items() if network.vocabulary is not None]:
        raise UserError(
            f"{masks}: the networks {', '.join(fewer)} don't write all tokens (--vocabulary), so that test text, which "
            "has all, has no loss on them; pack them without it to see what routing costs"
        )
    runtime = TaskRuntime(model, networks)
    for test in tests:
        runtime.known(test.name)
    found = end_to_end(runtime, tokenizer, guide, tests, options, fallback=runtime.known(fallback))
    return {"kind": ROUTING} | found | {"model": name, "router_key": guide.about.get("key")} | provenance()
