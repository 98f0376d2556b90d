"""Calibration with images: the decoder's inputs are those of the whole model's own forward pass."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from normed_rows import check_normed
from seeing import IMAGE, SEEING, conversations, folder, image, processor, seeing
from torch.nn.functional import cross_entropy
from toy import tokenizer as words

import seap
from seap.activations.calibration import calibrate
from seap.activations.stats import load_statistics, save_statistics
from seap.errors import UserError
from seap.evaluation import metrics
from seap.models.arch import describe
from seap.models.decoders import wrapper_of
from seap.pruning.commands import prune_to_folder
from seap.pruning.prune import build_corpora
from seap.text.corpus import Corpus
from seap.text.encode import encode
from seap.text.options import Calibration, Reading
from seap.text.rows import SeenRow, seen_of
from seap.text.tasks import load_items

TASK = "talk={}"


def rows_of(kind: str, place: Path, **options: Any) -> tuple[Any, Any, Any, Corpus]:
    model, tokenizer, processor = seeing(kind)
    reading = Calibration(**options)
    [corpus] = build_corpora(model, tokenizer, TASK.format(conversations(place)), reading).values()
    return model, tokenizer, processor, corpus


@torch.no_grad()
def alone(model: Any, row: Any) -> Any:
    """What the whole model says of one row, with what its processor made."""
    whole = wrapper_of(model)
    return whole(input_ids=torch.tensor([tuple(row)]), use_cache=False, **seen_of(row)).logits[0]


def by_hand(model: Any, rows: Any, counts: Any) -> dict[str, torch.Tensor]:
    """Axis key → all inputs of its consumer, of the whole model's forward pass, row after row."""
    arch = describe(model)
    found: dict[str, list[torch.Tensor]] = {axis.key: [] for axis in arch.axes}
    for row in rows:
        handles = []
        for axis in arch.axes:
            into, mask = found[axis.key], torch.tensor([counts(row, i) for i in range(len(row))])
            take = lambda _, inputs, into=into, mask=mask: into.append(inputs[0][0][mask])  # noqa: E731
            handles.append(arch.consumer(axis).register_forward_pre_hook(take))
        alone(model, row)
        for handle in handles:
            handle.remove()
    return {key: torch.cat(parts).double() for key, parts in found.items()}


@pytest.mark.parametrize("kind", SEEING)
def test_moments_are_those_of_the_whole_models_forward_pass(kind: str, tmp_path: Path) -> None:
    model, _, _, corpus = rows_of(kind, tmp_path)
    assert sum(isinstance(row, SeenRow) for row in corpus.rows) > 3 and any(not seen_of(row) for row in corpus.rows)
    expected, axes = by_hand(model, corpus.rows, lambda row, i: True), {axis.key: axis for axis in describe(model).axes}
    for second, size in ((False, 4096), (False, 1), (True, 4096), (True, 40)):
        found = calibrate(model, corpus, Calibration(second_moments=second, batch_tokens=size), progress=False)
        for key, values in expected.items():
            assert found[key].count == len(values) == corpus.num_tokens
            torch.testing.assert_close(found[key].mean, values.mean(0), atol=1e-5, rtol=1e-5)
            centred = values - values.mean(0)
            torch.testing.assert_close(found[key].m2, centred.square().sum(0), atol=1e-4, rtol=1e-4)
            if second and axes[key].is_normed:
                check_normed(found[axes[key].normed_key], values, describe(model).consumer(axes[key]))
            elif second:
                torch.testing.assert_close(found[key].co.double(), centred.t() @ centred, atol=1e-4, rtol=1e-4)
    halves = [replace(corpus, rows=part) for part in (corpus.rows[:5], corpus.rows[5:])]
    both = seap.activations.stats.merge(calibrate(model, half, Calibration(), progress=False) for half in halves)
    for key, values in expected.items():
        torch.testing.assert_close(both[key].mean, values.mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["Gemma3", "Qwen2VL"])
def test_text_alone_may_count_and_images_are_still_seen(kind: str, tmp_path: Path) -> None:
    model, _, _, corpus = rows_of(kind, tmp_path, images="context")
    expected = by_hand(model, corpus.rows, lambda row, i: row[i] != IMAGE)
    found = calibrate(model, corpus, Calibration(), progress=False)
    assert corpus.num_counted < corpus.num_tokens
    for key, values in expected.items():
        assert found[key].count == len(values) == corpus.num_counted
        torch.testing.assert_close(found[key].mean, values.mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SEEING)
def test_tokens_of_answers_are_marked_behind_images(kind: str, tmp_path: Path) -> None:
    _, tokenizer, _, corpus = rows_of(kind, tmp_path, weigh="answer")
    items = {
        item.turns[0].content: item.turns[1].content
        for item in load_items(TASK.format(tmp_path / "data.jsonl"), "train")
    }
    for row in corpus.rows:
        said = tokenizer.decode([row[i + 1] for i, counts in enumerate(row.counted) if counts and i])
        assert said.removesuffix(" w7") in items.values() and said.endswith("w7")


@pytest.mark.parametrize("kind", SEEING)
def test_the_loss_with_images_is_the_whole_models(kind: str, tmp_path: Path) -> None:
    model, _, _, corpus = rows_of(kind, tmp_path)
    total, count = 0.0, 0
    for row in corpus.rows:
        logits, targets = alone(model, row)[:-1], torch.tensor(tuple(row))[1:]
        text = targets != IMAGE
        total += float(cross_entropy(logits[text], targets[text], reduction="sum"))
        count += int(text.sum())
    found = metrics.loss(model, [metrics.Row(row) for row in corpus.rows], batch_tokens=64)
    assert found.value == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize(("kind", "method"), [("Qwen3VL", "seap"), ("Idefics3", "llm-pruner")])
def test_a_model_is_pruned_on_images_and_its_tower_stays(kind: str, method: str, tmp_path: Path) -> None:
    model, tokenizer, _ = seeing(kind)
    whole = wrapper_of(model)
    own = {id(parameter) for parameter in model.parameters()}
    tower = {name: value.clone() for name, value in whole.named_parameters() if id(value) not in own}
    task = TASK.format(conversations(tmp_path, 20))
    report = seap.prune(model, tokenizer, task=task, method=method, sparsity=0.3, min_channels=4, progress=False)
    assert report.realised_sparsity == pytest.approx(0.3, abs=0.05)
    assert report.to_dict()["damage"]["tokens"] > 0
    now = dict(whole.named_parameters())
    assert tower and all(torch.equal(now[name], value) for name, value in tower.items())


def test_statistics_files_keep_what_was_seen(tmp_path: Path) -> None:
    model, _, _, corpus = rows_of("Llava", tmp_path)
    found = calibrate(model, corpus, Calibration(), progress=False)
    save_statistics(tmp_path / "one.safetensors", found, {"task": "talk"})
    again, _ = load_statistics(tmp_path / "one.safetensors")
    assert list(again.rows) == [row if seen_of(row) else again.rows[i] for i, row in enumerate(corpus.rows)]
    assert [tuple(row) for row in again.rows] == [tuple(row) for row in corpus.rows]


def test_images_decide_the_datas_hash(tmp_path: Path) -> None:
    *_, one = rows_of("Llava", tmp_path)
    rows = [
        SeenRow(r, r.counted, r.places, {n: v + 1 for n, v in r.seen.items()}) if seen_of(r) else r for r in one.rows
    ]
    assert replace(one, rows=tuple(rows)).data_hash != one.data_hash


def test_slices_have_whole_images_or_none(tmp_path: Path) -> None:
    *_, corpus = rows_of("Gemma3", tmp_path)
    row = next(row for row in corpus.rows if isinstance(row, SeenRow))
    first, last = row.places.index(True), len(row) - 1 - row.places[::-1].index(True)
    for end in range(len(row) + 1):
        part = row[:end]
        assert tuple(part) == tuple(row)[: len(part)]
        assert isinstance(part, SeenRow) == (end > last) and (end > last or len(part) == min(end, first))
        if seen_of(part):
            assert part.seen["token_type_ids"].shape == (1, len(part))


def test_columns_of_images_have_their_places(tmp_path: Path) -> None:
    """As LLaVA's files have them, and beside questions and answers."""
    conversations(tmp_path)
    _, tokenizer, _ = seeing("Llava")
    said = [{"from": "human", "value": "<image>\nw30 w31"}, {"from": "gpt", "value": "w40"}]
    rows = [
        {"image": "1.0.png", "conversations": said},
        {"images": ["1.0.png"], "question": "w30 w31", "answer": "w40"},
        {"image": {"bytes": {"base64": ""}, "path": "1.0.png"}, "question": "w30 w31", "answer": "w40"},
        {
            "images": ["1.0.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w30 w31"}]},
                {"role": "assistant", "content": "w40"},
            ],
        },
    ]
    del rows[2]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = [*load_items(f"x={tmp_path}/rows.jsonl", "train"), *load_items(f"x={tmp_path}/rows.jsonl", "test")]
    found = [encode(tokenizer, item, Reading()) for item in items]
    assert len(found) == 3
    for one in found:
        assert tokenizer.decode(one.ids) == "w5 <image> <image> <image> <image> w30 w31 w7 w6 w40 w7"
        assert torch.equal(one.seen["pixel_values"], found[0].seen["pixel_values"])
    none = encode(tokenizer, items[1], Reading(images="none"))
    assert not none.seen and IMAGE not in none.ids


BAD = {
    "missing.png": ("data.jsonl line 1: image missing.png: no such file", None),
    "words.png": ("data.jsonl line 1: image words.png: not a readable image", b"words"),
    "https://example.org/a.png": ("data.jsonl line 1: image https://example.org/a.png: nothing is fetched", None),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_named_by_file_and_line(name: str, tmp_path: Path) -> None:
    told, content = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    rows = [{"image": name, "question": f"w3{i}", "answer": "w40"} for i in range(1)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, tokenizer, _ = seeing("Llava")
    [item] = load_items(f"x={tmp_path}/data.jsonl", "train")
    with pytest.raises(UserError, match=told):
        encode(tokenizer, item, Reading())


def test_more_places_than_images_are_named_by_file_and_line(tmp_path: Path) -> None:
    conversations(tmp_path)
    row = {"image": "1.0.png", "question": "<image> <image> w30", "answer": "w40"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    _, tokenizer, _ = seeing("Llava")
    [item] = load_items(f"x={tmp_path}/data.jsonl", "train")
    with pytest.raises(UserError, match=r"data.jsonl line 1: 1 images in its columns, and 2 places"):
        encode(tokenizer, item, Reading())


def test_a_model_of_text_alone_leaves_columns_out_and_refuses_images_in_messages(tmp_path: Path) -> None:
    path = conversations(tmp_path)
    item = next(item for item in load_items(f"x={path}", "train") if item.pictures)
    with pytest.raises(
        UserError, match=r"data.jsonl line \d+: an image in its messages, and the model reads text alone"
    ):
        encode(words(), item, Reading())
    (tmp_path / "beside.jsonl").write_text(json.dumps({"image": "1.0.png", "question": "w30", "answer": "w40"}))
    [item] = load_items(f"x={tmp_path}/beside.jsonl", "train")
    assert not encode(words(), item, Reading()).seen


def test_bytes_in_parquet_are_images(tmp_path: Path) -> None:
    conversations(tmp_path)
    content = (tmp_path / "1.0.png").read_bytes()
    columns = {"image": [{"bytes": content, "path": "x.png"}], "question": ["w30"], "answer": ["w40"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "1.0.png", "question": "w30", "answer": "w40"}))
    _, tokenizer, _ = seeing("Llava")
    found = [
        encode(tokenizer, *load_items(f"x={tmp_path}/rows.{end}", "train"), Reading()) for end in ("parquet", "jsonl")
    ]
    assert torch.equal(found[0].seen["pixel_values"], found[1].seen["pixel_values"]) and found[0].ids == found[1].ids


def test_from_a_folder_to_a_smaller_folder_with_images(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", "Gemma3")
    task = TASK.format(conversations(tmp_path, 30))
    prune_to_folder(
        str(source), tmp_path / "out", tasks=[task], method="flap", sparsity=0.3, min_channels=4, progress=False
    )
    told = json.loads((tmp_path / "out" / "seap.json").read_text())
    assert told["realised_sparsity"] > 0.2 and (tmp_path / "out" / "processor_config.json").exists()
    whole, before = (
        transformers.AutoModelForImageTextToText.from_pretrained(path) for path in (tmp_path / "out", source)
    )
    shown = processor("Gemma3")(text=["w3 <boi> w4"], images=[[image(1)]], return_tensors="pt")
    with torch.no_grad():
        seen = [model.get_image_features(shown["pixel_values"]).pooler_output for model in (whole, before)]
        assert torch.equal(*seen) and whole(**shown).logits.isfinite().all()
