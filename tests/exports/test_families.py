"""Which family goes to which engine: the table in docs/deploy.md is what the code takes and refuses."""

from collections.abc import Callable
from typing import Any

from paths import ROOT
from tiny import MOE, ROW_OF, ROWS, model

from seap.errors import UserError
from seap.exports import compressed, gguf_file, mlx_folder, nemotron_nas, onnx_folder, openvino_folder, writers

ENGINES: dict[str, Callable[[Any], Any]] = {
    "padded": writers.check_padded,
    "nemotron-nas": nemotron_nas.check_config,
    "gguf": gguf_file.check_config,
    "mlx": mlx_folder.check_config,
    "openvino": openvino_folder.check_config,
    "onnx": onnx_folder.check_config,
    "compressed-tensors": compressed.check_config,
    "torchao": writers.check_torchao,
}
WINDOWS = ["sliding_attention"] * 5 + ["full_attention"]
# experts in every layer, a window in each but the sixth
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"mlp_only_layers": []},
    "gemma3_text": {"num_hidden_layers": 6, "layer_types": WINDOWS},
}
TIED = ("qwen3",)  # whose tied form alone goes to one engine; the table's footnote says so


def taken(name: str) -> str:
    """A family's cells: ✓ where an engine takes it, where no window hides a token and heads · head size is the hidden
    size."""
    config = model(name, tie_word_embeddings=True if name in TIED else None, **PUBLISHED.get(name, {})).config
    if not ROW_OF[name].sizes_by_type and getattr(config, "head_dim", None):
        config.head_dim = config.hidden_size // config.num_attention_heads
    if getattr(config, "query_pre_attn_scalar", None):
        config.query_pre_attn_scalar = config.head_dim
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = config.max_position_embeddings
    cells = []
    for check in ENGINES.values():
        try:
            check(config)
            cells.append("✓")
        except UserError:
            cells.append("")
    return " | ".join(cells)


def test_the_table_of_families_and_engines_is_what_the_code_takes() -> None:
    groups: dict[str, list[str]] = {}
    for name in sorted([*ROWS, *MOE]):
        groups.setdefault(taken(name), []).append(name.replace("-", " with "))
    head = f"| family | {' | '.join(ENGINES)} |\n|{'---|' * (1 + len(ENGINES))}"
    lines = [f"| {', '.join(names)} | {cells} |" for cells, names in sorted(groups.items(), key=lambda one: one[1])]
    table = "\n".join([head, *lines])
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert table in page, f"docs/deploy.md should have this table:\n{table}"
