"""How one family of models names its parts, and what of them can't be cut: the form of a row of `families.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seap.models.experts import Cut, Layout


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """What mixes tokens in place of softmax attention, or beside it, and is left as it is. Paths as in `Family`."""

    path: str  # the module, whose linears count in every sparsity as heads that can't be cut do
    consumer: str  # its linear that writes to the residual stream; a layer that has this one has the mixer
    name: str  # what messages call it
    why: str  # it isn't cut


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How later layers read the keys and values of earlier ones, whose heads must then be those of the readers."""

    modes: str  # the config's entry of each layer's part: "store", "reuse", or None of a layer that reads its own
    kinds: str  # and of each layer's kind, by which keys and values are found again
    passed: str  # the keyword by which a layer gets them, and hands its own on
    keys: str  # the linear that writes the keys


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one `model_type` names its parts. Paths are relative to the decoder layer.

    Layers needn't be alike: each has the axes whose consumers it has. `heads` and `mlp` map each linear that writes
    the axis to the parts stacked in its rows: q (Q·K rows a unit), Q (twice as many: each query head's rows, then its
    gates), k and v (K rows), g, u and c (one row: gate, up, or the only one). A fused `qkv_proj` has "qkv"; "*" alone
    stands for as many rows a unit as there are. Linears that a model hasn't got are passed over.
    """

    model_type: str
    layers: str = "model.layers"
    heads: dict[str, str]
    heads_consumer: str = "self_attn.o_proj"
    heads_refused: str = ""  # why the heads can't be cut; empty when they can
    heads_refused_with: Mapping[str, str] = field(default_factory=dict)  # why not, where this config entry is true
    head_size: str = "self_attn.head_dim"  # of what the consumer reads
    head_key: str = "head_dim"  # the config entry that it is written to; empty where the config has it anyway
    heads_share: bool = True  # whether the linears that write the heads all read the same
    uncut: tuple[str, ...] = ()  # linears of the attention that every head needs, which stay and count
    mixers: tuple[Mixer, ...] = ()
    mlp: dict[str, str]
    mlp_consumer: str = "mlp.down_proj"
    mlp_refused_at: Mapping[str, str] = field(default_factory=dict)  # why not where this list has a value
    channels_key: str = "intermediate_size"
    channels_factor: int = 1  # the config's number is so many times the channels
    transposed: bool = False  # weights are (C, O), as in GPT-2's Conv1D
    head_values: tuple[str, ...] = ()  # parameters with one value for each query head
    heads_norm: str = "input_layernorm"  # what the attention reads through; empty where it reads the stream itself
    mlp_norm: str = "post_attention_layernorm"  # and the MLP; where a layer has none, both read through one norm
    heads_behind: str = ""  # the norm behind what the attention writes
    mlp_behind: str = ""
    blocks_refused: str = ""  # why no attention or MLP can go whole; empty when they can
    # why not, where a config entry has a value
    blocks_refused_with: Mapping[tuple[str, bool], str] = field(default_factory=dict)
    experts: Layout | None = None  # of the layers that have experts; `mlp` is then that of the others
    streams: str = ""  # the config's number of hidden states of a token that layers hand on beside each other
    sharing: Sharing | None = None
    # what each layer reads of the tokens beside the hidden states: the config's size of it, and the keyword for it
    token_inputs: tuple[str, str] | None = None
    output_parts: int = 0  # in the tuple that a layer returns; 0 where it returns the hidden states themselves
    fixed: Mapping[str, Any] = field(default_factory=dict)  # config entries by which widths are what the config says
    # whether the config says sizes of layers in a way of its own, that not all widths fit: they are then under `seap`
    sizes_by_type: bool = False
    built_with: Mapping[str, str] = field(default_factory=dict)  # arguments of a layer → config key of all layers'


SEPARATE_HEADS = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v"}
LLAMA = Family(model_type="llama", heads=SEPARATE_HEADS, mlp={"mlp.gate_proj": "g", "mlp.up_proj": "u"})


def stacked(block: str, **own: Any) -> Layout:
    """Experts as transformers stacks them inside a block, gate and up in one; own: what else there is to say."""
    up, down = f"{block}.experts.gate_up_proj", f"{block}.experts.down_proj"
    usual: dict[str, Any] = {
        "block": block,
        "module": f"{block}.experts",
        "router": f"{block}.gate",
        "up": up,
        "down": down,
        "by_channel": {up: Cut(dim=0, sections=(1, 1)), down: Cut(dim=1)},
        "by_expert": (f"{block}.gate.weight",),
        "shared": {},
    }
    return Layout(**usual | own)


QWEN2_MOE = stacked(
    "mlp",
    count_keys=("num_experts",),
    channels_key="moe_intermediate_size",
    shared={"mlp.shared_expert.gate_proj": "g", "mlp.shared_expert.up_proj": "u"},
    shared_consumer="mlp.shared_expert.down_proj",
    shared_key="shared_expert_intermediate_size",
)
