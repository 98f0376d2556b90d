"""lm-evaluation-harness through the server (`lm_eval --model local-completions`): `seap eval --harness`'s figures."""

import json
from pathlib import Path
from typing import Any

import pytest
from live import running
from toy import WORDS
from workload import Bench

from seap.evaluation import harness, harness_tasks

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity", reason="lm-eval's api extra")

LONGEST = 64


def words(start: int, number: int) -> str:
    return " ".join(WORDS[(start * 11 + i * 5) % len(WORDS)] for i in range(number))


def rows(name: str) -> list[dict[str, Any]]:
    if name == "piqa":
        return [{"goal": words(i, 5), "sol1": words(i, 3), "sol2": words(i + 1, 4), "label": i % 2} for i in range(10)]
    if name == "wikitext":
        pages = [f" = w{i + 5} = \n \n {words(i, 9)} . \n = = w{i + 9} = = \n w6 " for i in range(3)]
        lines = "\n".join(pages).splitlines(keepends=True)
        return [{"text": line if line.strip() else ""} for line in lines]
    choices = [[words(i + j, 1 + (i + j) % 4) for j in range(4)] for i in range(10)]
    return [{"question": words(i, 6), "choices": choices[i], "answer": i % 4} for i in range(10)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    for name, part in (("arc_easy", "test"), ("piqa", "validation"), ("wikitext", "test")):
        (root / name).mkdir()
        (root / name / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows(name))))
    return root


def test_the_harness_finds_the_same_through_the_server(data: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate

    bench = Bench("llama")
    bench.tokenizer.eos_token = "</s>"  # the harness puts one before texts without a context
    bench.tokenizer.save_pretrained(tmp_path / "tokenizer")
    names = ["arc_easy", "piqa", "wikitext"]
    _, tasks = harness_tasks.local_tasks(names, data, 0)
    with running(bench) as url:
        arguments = {
            "model": "red",
            "base_url": f"{url}/v1/completions",
            "tokenizer": str(tmp_path / "tokenizer"),
            "tokenizer_backend": "huggingface",
            "max_length": LONGEST,
        }
        options: dict[str, Any] = {"log_samples": False, "limit": 5, "batch_size": 4}
        manager = harness_tasks.manager("arc")
        found = simple_evaluate("local-completions", arguments, tasks, task_manager=manager, **options)["results"]
    ours = harness.evaluate(bench.alone["red"], bench.tokenizer, names, data=data, limit=5)
    assert len(ours) == 7
    for row in ours:
        assert found[row["task"]][f"{row['metric']},none"] == pytest.approx(row["value"], rel=1e-5)
