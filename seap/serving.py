"""The commands around one model with many tasks, over files: what can be refused is refused before anything loads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seap import checkpoint
from seap.arch import describe
from seap.config_serving import Routing
from seap.errors import UserError
from seap.files import check_output_file
from seap.network import free_layers, load_networks
from seap.router import load_router
from seap.routing import load_prompts, make_router

Options = Mapping[str, Any]


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
    """`seap route fit`: write the router; its report is returned, and stands in the file's metadata."""
    check_output_file(out, suffix=".safetensors", overwrite=overwrite)
    load_prompts(tasks, "test", options)
    model, tokenizer = checkpoint.load(name, **(loading or {}))
    depth = 0
    if masks is not None:
        num_layers = len(describe(model).layers)
        depth = min(free_layers(load_networks(masks, model), num_layers), num_layers - 1)
    router = make_router(model, tokenizer, tasks, options, depth=depth)
    router.save(out)
    told = {"tasks": list(router.tasks), "depth": router.depth, "threshold": router.threshold, "limit": router.limit}
    return told | dict(router.about["report"])


def predict_routes(
    name: str, prompts: Sequence[str], path: Path, *, loading: Options | None = None
) -> list[dict[str, Any]]:
    """`seap route predict`: one route a prompt."""
    if not prompts:
        raise UserError("no prompt to route: give one or more after the model")
    load_router(path)
    model, tokenizer = checkpoint.load(name, **(loading or {}))
    return [asdict(route) for route in load_router(path, model).predict(model, tokenizer, prompts)]
