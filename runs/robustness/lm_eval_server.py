"""lm-evaluation-harness through the server (`lm_eval --model local-completions`) beside `seap eval --harness`.

    python runs/robustness/lm_eval_server.py MODEL TASKS

MODEL: a folder. TASKS: a folder with the tasks' files, as --harness-data takes it. Serves the dense model on loopback
and writes both figures to results/robustness/lm_eval_server.json.
"""

import argparse
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from lm_eval import simple_evaluate

from seap.environment import provenance
from seap.evaluation import harness, harness_tasks
from seap.models import loader
from seap.serving.networks.runtime import TaskRuntime
from seap.serving.options import Limits
from seap.serving.scheduling.scheduler import Scheduler
from seap.serving.server.app import Service, create_app
from seap.serving.server.run import address, bind

NAMES = ("arc_easy", "piqa", "boolq")


@contextlib.contextmanager
def served(model: Any, tokenizer: Any) -> Iterator[str]:
    """The address of a server with the dense model alone."""
    scheduler = Scheduler(TaskRuntime(model, {}), tokenizer, Limits())
    bound = bind("127.0.0.1", 0)
    app = create_app(Service(scheduler=scheduler, tokenizer=tokenizer, name="dense"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]))
    thread.start()
    try:
        yield address(bound)
    finally:
        server.should_exit = True
        thread.join()


def through_server(name: str, model: Any, tokenizer: Any, data: Path, limit: int) -> dict[str, Any]:
    _, tasks = harness_tasks.local_tasks(NAMES, data, 0)
    with served(model, tokenizer) as url:
        arguments = {
            "model": "dense",
            "base_url": f"{url}/v1/completions",
            "tokenizer": name,
            "tokenizer_backend": "huggingface",
            "max_length": model.config.max_position_embeddings,
        }
        manager = harness_tasks.manager("arc")
        options: dict[str, Any] = {"limit": limit, "batch_size": 8, "log_samples": False}
        found = simple_evaluate("local-completions", arguments, tasks, task_manager=manager, **options)
    results: dict[str, Any] = found["results"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--limit", type=int, default=50, help="items of each task")
    parser.add_argument("--out", type=Path, default=Path("results/robustness/lm_eval_server.json"))
    options = parser.parse_args()
    model, tokenizer = loader.load_for_work(options.model, dtype="float32")
    ours = harness.evaluate(model, tokenizer, NAMES, data=options.tasks, limit=options.limit)
    theirs = through_server(options.model, model, tokenizer, options.tasks, options.limit)
    rows = [
        {key: row[key] for key in ("task", "metric", "n")}
        | {"seap_eval": row["value"], "through_server": theirs[row["task"]][f"{row['metric']},none"]}
        for row in ours
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"rows": rows} | provenance(), indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
