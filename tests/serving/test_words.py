"""Networks with fewer tokens: their output layer is a slice of the dense model's, the embedding is shared."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cut import greedy, random_masks
from tiny import ALL, ids, model
from vocabularies import TEXTS, byte_level, with_added

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.exports.gguf_vocabulary import PRE_TOKENIZERS
from seap.models.arch import describe
from seap.serving.networks.network import Network, load_network, load_networks, save_network
from seap.serving.networks.words import NEVER

ROWS = [name for name in sorted(ALL) if not any(axis.usage_key for axis in describe(model(name)).axes)]


@pytest.mark.parametrize("name", ROWS)
def test_logits_of_the_tokens_that_stay_are_the_same_and_no_other_is_written(name: str) -> None:
    net = model(name)
    masks, kept = random_masks(net, 1), torch.arange(3, 97, 3)
    runtime = seap.TaskRuntime(net, {"whole": masks, "few": Network(masks, vocabulary=kept)})
    with torch.no_grad():
        found = {}
        for task in ("whole", "few", "whole", "dense", "few"):
            with runtime.task(task) as current:
                found[task], written = current(ids()).logits, greedy(current, ids())[:, ids().shape[1] :]
            if task == "few":
                assert torch.isin(written, kept).all()
    assert torch.allclose(found["few"][..., kept], found["whole"][..., kept], atol=1e-5)
    gone = torch.ones(97, dtype=torch.bool).index_fill_(0, kept, False)
    assert (found["few"][..., gone].amax(-1) < found["few"][..., kept].amin(-1)).all()
    assert float(found["few"].softmax(-1)[..., gone].sum()) < 1e-4 and found["dense"][..., gone].min() > NEVER / 2
    assert runtime.resident["few"] - runtime.resident["whole"] == len(kept) * net.lm_head.weight[0].nbytes


def test_a_file_says_which_and_is_looked_at(tmp_path: Path) -> None:
    net, path = model("llama"), tmp_path / "few.safetensors"
    masks, kept = random_masks(net, 1), torch.arange(0, 97, 2)
    save_network(path, Network(masks, vocabulary=kept), {"task": "few"})
    read = load_network(path).vocabulary
    assert read is not None and torch.equal(read, kept)
    for wrong in (torch.tensor([5, 3]), torch.tensor([3, 3]), torch.tensor([3, 97]), torch.tensor([-1, 3]), kept[:0]):
        with pytest.raises(UserError, match="vocabulary has type"):
            seap.TaskRuntime(model("llama"), {"few": Network(masks, vocabulary=wrong)})


def test_pack_and_what_can_not_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = with_added(byte_level(*PRE_TOKENIZERS["gpt-2"].splits))
    net: Any = model("llama-tied", vocab_size=len(words), max_position_embeddings=256, hidden_size=32)
    for part in (net, words):
        part.save_pretrained(tmp_path / "dense")
    lines = [line for text in dict.fromkeys(TEXTS) for line in text.replace("\n", ". ").split(". ") if line.strip()]
    (tmp_path / "toy.jsonl").write_text("\n".join(json.dumps({"text": f"{a} {b}"}) for a in lines for b in lines[:5]))
    dense, task, out = str(tmp_path / "dense"), f"toy={tmp_path / 'toy.jsonl'}", str(tmp_path / "tasks")
    asked = ["--method", "flap", "--min-channels", "4", "--sparsity", "0.3", "--vocabulary", "320"]
    assert main(["pack", dense, "--task", task, *asked, "--out", out, "--json"]) == 0
    [about] = json.loads(capsys.readouterr().out)["files"]
    assert about["vocabulary"]["tokens_after"] == 320 and about["realised_sparsity"] == pytest.approx(0.3, abs=0.02)
    loaded, its = seap.load(dense, device="cpu")
    runtime = seap.TaskRuntime(loaded, load_networks(Path(out), loaded))
    kept = runtime.networks["toy"].vocabulary
    assert kept is not None and len(kept) == 320
    given = its("a word never seen: ὀδύσσεια", return_tensors="pt")
    found = runtime.generate(given["input_ids"], "toy", attention_mask=given["attention_mask"], max_new_tokens=8)
    assert set(found[0][given["input_ids"].shape[1] :].tolist()) <= set(kept.tolist())
    assert main(["inspect", str(Path(out) / "toy.safetensors")]) == 0
    assert main(["pack", dense, str(Path(out) / "toy.safetensors"), "--vocabulary", "320", "--out", out + "2"]) == 1
    assert "sources have theirs already" in capsys.readouterr().err
