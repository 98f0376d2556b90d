"""The router as a Ray Serve application before servers of the tasks' networks: as many replicas as the load wants.

    pip install "ray[serve]"
    python runs/serving/ray_serve.py ./my-model --router router.safetensors --backend backends.json --replicas 2

backends.json is that of `seap serve --backend`: task → URL of an OpenAI-compatible server, such as vLLM's. Every
replica loads the model itself (on the CPU: the router reads its embeddings and first layers alone). Ctrl-C ends it.
"""

import argparse
from pathlib import Path
from typing import Any

from ray import serve

import seap
from seap.serving.routing.router import load_router
from seap.serving.server.forward import Forwarder, create_forwarder, read_backends


def application(model_name: str, router: str, backends: str, fallback: str, replicas: int) -> Any:
    """The Serve application; the model is loaded where a replica starts."""

    def build() -> Any:
        model, tokenizer = seap.load(model_name, device="cpu")
        forwarder = Forwarder(
            backends=read_backends(backends),
            router=load_router(Path(router), model),
            model=model,
            tokenizer=tokenizer,
            fallback=fallback,
        )
        return create_forwarder(forwarder)

    return serve.deployment(serve.ingress(build)(), num_replicas=replicas).bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--router", required=True)
    parser.add_argument("--backend", required=True, help="a JSON file: task → URL")
    parser.add_argument("--fallback", default="dense", help="the backend of prompts that the router gives to no task")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    files = [str(Path(name).resolve()) for name in (arguments.router, arguments.backend)]
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    app = application(arguments.model, *files, arguments.fallback, arguments.replicas)
    serve.run(app, name="seap", route_prefix="/", blocking=True)


if __name__ == "__main__":
    main()
