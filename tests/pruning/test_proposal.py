"""`inspect --family`: the rows of the families that are known are found again from the modules, and hold when tried."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MOE, ROWS, model
from toy import folder
from transformers import CONFIG_MAPPING

from seap.cli.main import main
from seap.errors import UserError
from seap.models.families import FAMILIES, Family
from seap.pruning.proposal import as_python, proposed, random_model, tried

# what a row says that no look at the modules shows
NOT_SHOWN = {"heads_refused_with", "blocks_refused_with", "experts"}
SAME = {  # names of another kind for the same: a family may have fields that these tests don't know
    "model_type",
    "layers",
    "heads",
    "heads_consumer",
    "mlp",
    "mlp_consumer",
    "channels_key",
    "transposed",
    "head_values",
    "heads_norm",
    "heads_behind",
    "mlp_behind",
}


def known(name: str) -> tuple[Family, Any]:
    return FAMILIES[name], proposed(copy.deepcopy(model(name).config))


def is_plain(name: str) -> bool:
    row = FAMILIES[name]
    return row.heads_share and not row.mixers and not row.sizes_by_type


PLAIN = [name for name in ROWS if is_plain(name)]


@pytest.mark.parametrize("name", [name for name in ROWS if name not in PLAIN])
def test_layers_of_several_kinds_and_latent_heads_are_not_told_and_that_is_said(name: str) -> None:
    if FAMILIES[name].sharing and FAMILIES[name].streams:  # layers that read the keys of others need some of each kind
        with pytest.raises(UserError, match="no small model of its config can be built"):
            known(name)
        return
    found = known(name)[1]
    assert not found.holds and found.told


@pytest.mark.parametrize("name", PLAIN)
def test_a_known_family_is_found_again(name: str) -> None:
    row, found = known(name)
    assert found.row is not None and found.holds, found.told
    for field in SAME:
        assert getattr(found.row, field) == getattr(row, field), field
    assert bool(found.row.heads_refused) == bool(row.heads_refused)
    assert found.text.startswith("replace(") and f'model_type="{name}"' in found.text


def test_the_text_is_the_row() -> None:
    from dataclasses import replace

    for name in ("gpt2", "phi3", "olmo2", "llama"):
        row = known(name)[1].row
        built = eval(as_python(row), {"replace": replace, "LLAMA": FAMILIES["llama"]})
        assert built == row


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_not_told_and_that_is_said(name: str) -> None:
    assert name in MOE
    found = proposed(copy.deepcopy(model(name).config))
    assert not found.holds and any("experts" in text or "runs its linears as" in text for text in found.told)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gptj", 'heads_consumer="attn.out_proj"'),
        ("jais2", 'mlp={"mlp.up_proj": "c"}'),
        ("falcon", ""),
        ("deepseek_v3", "self_attn.q_a_proj → self_attn.q_b_proj"),
        ("mamba2", "doesn't run"),
    ],
)
def test_families_that_have_no_row(name: str, said: str) -> None:
    """By the configs that transformers has for them: a row that holds, or a reason."""
    if name in FAMILIES or name not in CONFIG_MAPPING:
        pytest.skip(f"{name} has a row, or this transformers doesn't know it")
    found = proposed(CONFIG_MAPPING[name]())
    assert said in (found.text if found.holds else " ".join(found.told))
    assert name not in FAMILIES and (found.row is None or found.text)


def test_a_wrong_row_is_noticed() -> None:
    from dataclasses import replace

    built = random_model(copy.deepcopy(model("llama").config))
    row = FAMILIES["llama"]
    assert tried(built, row)[1] == ""
    swapped = replace(row, heads={"self_attn.q_proj": "k", "self_attn.k_proj": "q", "self_attn.v_proj": "v"})
    assert "can't be cut by it" in tried(built, swapped)[1]
    fused = random_model(copy.deepcopy(model("phi3").config))
    wrong = replace(FAMILIES["phi3"], heads={"self_attn.qkv_proj": "kqv"})
    difference, why = tried(fused, wrong)
    assert why and (difference is None or difference > 1e-3)
    assert FAMILIES["phi3"].heads == {"self_attn.qkv_proj": "qkv"}


def test_large_models_are_tried_narrow() -> None:
    config = copy.deepcopy(model("llama").config)
    for key, value in {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}.items():
        setattr(config, key, value)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 32, 8, 128
    built = random_model(config)
    assert len(built.model.layers) == 3 and sum(p.numel() for p in built.parameters()) < 2e8
    assert config.num_hidden_layers == 32


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "dense", "phi")
    (path / "model.safetensors").unlink()  # only the config is read
    assert main(["inspect", str(path), "--family", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["known"] and told["holds"] and 'heads_consumer="self_attn.dense"' in told["row"]
    assert main(["inspect", str(path), "--family"]) == 0
    printed = capsys.readouterr()
    assert "replace(" in printed.out and "tried on random input" in printed.err
    assert main(["inspect", str(path), "--trust-remote-code"]) == 1
    assert "is for inspect --family" in capsys.readouterr().err


def test_no_code_of_the_checkpoint_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"model_type": "strange", "auto_map": {"AutoConfig": "configuration_strange.Strange"}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "configuration_strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert main(["inspect", str(tmp_path), "--family"]) == 1
    assert "strange" in capsys.readouterr().err and not (tmp_path / "ran").exists()
    assert torch.get_default_dtype() == torch.float32
