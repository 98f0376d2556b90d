"""The commands and the code of docs/chat.md run, in its order, from a log of conversations to a tested model."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import paths
import pytest

import seap
from seap.cli.main import main
from seap.models.loader import model_path
from seap.text import builtin

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
QUICK = {
    "prune": ["--search-evaluations", "1", "--probe-tokens", "64", "--fisher-tokens", "64", "--num-texts", "24"],
    "answer": [],
    "eval": ["--num-items", "20"],
}  # what a user would wait for


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A model with a chat template and a log of what it is asked; the log's conversations are returned."""
    shutil.copytree(model_path(), tmp_path / "my-model")
    config = json.loads((tmp_path / "my-model" / "tokenizer_config.json").read_text())
    (tmp_path / "my-model" / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    talks = [
        [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}]
        for item in builtin.items("arithmetic", "train", 60)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    monkeypatch.chdir(tmp_path)
    return talks


def test_the_commands_of_the_guide_run(shop: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    text = (paths.ROOT / "docs" / "chat.md").read_text()
    commands = [line.split() for line in re.findall(r"(?m)^seap .*$", text)]
    assert [command[1] for command in commands] == ["eval", "corpus", "prune", "eval"]
    for command in commands:
        assert command[0] == "seap"
        kind = "answer" if command[1] == "corpus" else command[1]
        capsys.readouterr()
        assert main([*command[1:], *QUICK[kind], "--json"]) == 0, capsys.readouterr().err
        told = json.loads(capsys.readouterr().out)
        if kind == "eval":
            (row,) = told["rows"]
            assert (row["template"], row["weigh"]) == ("chat", "answer")
        if kind == "prune":
            assert told["corpora"]["support"]["tokens"] > 0 and "counted" not in told["corpora"]["support"]  # all
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(rows) > 20 and all(row["generated"] and row["messages"][-1]["role"] == "assistant" for row in rows)
    log = [json.loads(line)["messages"] for line in Path("log.jsonl").read_text().splitlines()]
    held = seap_test_prompts()
    assert {row["messages"][0]["content"] for row in rows} <= {talk[0]["content"] for talk in log} - held


def seap_test_prompts() -> set[str]:
    from seap.text.tasks import load_items

    return {item.turns[0].content for item in load_items("support=log.jsonl", "test")}


def test_the_code_of_the_guide_runs(shop: list[Any]) -> None:
    text = (paths.ROOT / "docs" / "chat.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {"seap": seap, "conversations": shop}
    block = block.replace("sparsity=0.3", 'sparsity=0.3, method="seap-paper", progress=False')
    exec(block, names)
    assert names["report"].num_tokens < 60 * 10 and names["report"].realised_sparsity == pytest.approx(0.3, abs=0.01)
