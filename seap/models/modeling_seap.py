"""Builds decoder layers whose widths differ from layer to layer; shipped inside every pruned checkpoint.

This file is complete in itself (it imports nothing of seap), since `save_pretrained` copies it into the checkpoint and
`trust_remote_code=True` runs it where seap isn't installed. It knows no model family: which class is the decoder layer,
which linears got a bias and what belongs to a sub-block is written in the checkpoint's config under `seap`; the widths
are in `per_layer_config`, and there, under `skip`, the sub-blocks that a layer hasn't got.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_HOOKED_MODULE = "transformers.modeling_utils"
_ADOPTED = "adopted "
_REMOTE = {
    "SeapForCausalLM": "AutoModelForCausalLM",
    "SeapForImageTextToText": "AutoModelForImageTextToText",
    "SeapModel": "AutoModel",
}
_WHOLE_ROWS = ("grouped_mm", "deepgemm", "sonicmoe")
_BLOCKS = ("Gone", "Written")
NEEDS = "pruned by seap: import seap before loading it, or pass trust_remote_code=True"
_KEPT = ("seap.json", "seap/mask.safetensors", "README.md")
_SAVED_AGAIN = "\nThe weights were saved again after the pruning, and may have been trained since.\n"
_subclasses: dict[type, type] = {}


class LayerConfig:
    """The model's config as one layer sees it: its own widths, everything else read from the whole config.

    A view rather than a copy, so that what is changed on the model's config later (the attention implementation, for
    instance) reaches the layers.
    """

    def __init__(self, config: Any, widths: dict[str, int], *, expert_width: str | None = None) -> None:
        told = getattr(config, "seap", None) or {}
        for name, width in widths.items():
            said = vars(config).get(name)  # a list where it has a number of each layer, which takes its own
            self.__dict__[name] = [width] * len(said) if isinstance(said, list) else width
        self.__dict__["_whole"], self.__dict__["_expert_width"] = config, expert_width or told.get("expert_width")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_whole" not in self.__dict__:
            raise AttributeError(name)
        found = getattr(self.__dict__["_whole"], name)
        return "eager" if name == "_experts_implementation" and self._is_ragged(found) else found

    def _is_ragged(self, implementation: str) -> bool:
        """Whether the experts' width is none that a grouped matrix product takes: rows must be of whole 16 bytes."""
        width = self.__dict__.get(self.__dict__["_expert_width"])
        return implementation in _WHOLE_ROWS and width is not None and width % 8 != 0


def layer_widths(config: Any, layer: int) -> dict[str, int]:
    """The widths of one layer: `{"intermediate_size": 37, …}`, named as in the family's config."""
    layers: Any = config.seap.get("layers")
    if layers is not None:  # the family's config has another use for its own
        return {name: value for name, value in layers[layer].items() if name != "skip"}
    layers = config.per_layer_config
    if isinstance(layers, dict):  # transformers before 5.15 keeps the JSON object as it is
        return layers.get(str(layer)) or layers.get(layer) or {}
    return {name: getattr(layers[layer], name) for name in config.seap["widths"]}


def skipped(config: Any, layer: int) -> tuple[str, ...]:
    """The sub-blocks that a layer hasn't got, of `attention` and `mlp`."""
    if not getattr(config, "seap", None):
        return ()
    layers: Any = config.seap.get("layers")
    if layers is not None:
        return tuple(layers[layer].get("skip", ()))
    layers = config.per_layer_config
    if isinstance(layers, dict):
        return tuple(layer_widths(config, layer).get("skip", ()))  # type: ignore[arg-type]
    return tuple(getattr(layers[layer], "skip", ()))


def cache_place(config: Any, layer: int) -> int:
    """The layer whose place in a KV cache a layer's attention takes: its own, where no attention before it is gone.

    Of the layers whose places are alike (full, sliding) the first ones are filled, since how many tokens a cache holds
    is read from those.
    """
    types = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    alike = [index for index, kind in enumerate(types) if kind == types[layer]]
    return alike[[i for i in alike if "attention" not in skipped(config, i)].index(layer)]


def drop_(layer: Any, blocks: Mapping[str, Mapping[str, Any]], written: Mapping[str, int]) -> None:
    """Take sub-blocks out of a decoder layer, with the norms that nothing else reads.

    blocks: by the name of a sub-block, the path of the linear that it writes with (`consumer`), and of the modules that
    go with it (`passes`). written: the sub-blocks that go, and how long the vector is that stays of each: 0, or the
    hidden size.
    """
    import torch

    for kind, size in written.items():
        block, _, name = blocks[kind]["consumer"].rpartition(".")
        left = _block_class("Written")(size)
        whole = _block_class("Gone")(name, left, kind == "attention") if block else left
        layer.set_submodule(block or name, whole)
    needed = {name for kind, block in blocks.items() if kind not in written for name in block["passes"]}
    for name in {name for kind in written for name in blocks[kind]["passes"]} - needed:
        layer.set_submodule(name, torch.nn.Identity())


def _block_class(name: str) -> Any:
    """What stands where a sub-block was; made when it is asked for, so that `import seap` stays cheap."""
    if name in globals():
        return globals()[name]
    import torch

    class Written(torch.nn.Module):
        """Writes one vector whatever it reads. Stored under the name of a linear's weight, whose shape no stock class
        takes it for."""

        bias = None

        def __init__(self, size: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(size))

        def forward(self, hidden: Any) -> Any:
            if not self.weight.numel():
                return torch.zeros_like(hidden)
            return self.weight.to(hidden.dtype).expand_as(hidden)

    class Gone(torch.nn.Module):
        """In place of an attention, which returns its weights too, or of an MLP."""

        def __init__(self, name: str, written: Any, is_attention: bool) -> None:
            super().__init__()
            self.name, self.is_attention = name, is_attention
            self.add_module(name, written)

        def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            output = getattr(self, self.name)(hidden_states)
            return (output, None) if self.is_attention else output

    for made in (Written, Gone):
        made.__module__, made.__qualname__ = __name__, made.__name__
        globals()[made.__name__] = made
    return globals()[name]


def add_bias_(linear: Any, size: int) -> None:
    """Give a linear without bias a zero one."""
    import torch  # here, so that `import seap` stays cheap

    if linear.bias is None:
        zeros = torch.zeros(size, dtype=linear.weight.dtype, device=linear.weight.device)
        linear.bias = torch.nn.Parameter(zeros)


def adopted(base: Any) -> type | None:
    """A family's class under a name and with an `_auto_class` that make `save_pretrained` ship this file.

    None for a class that no auto class of ours loads, a classifier for instance.
    """
    if "generate" in dir(base):
        name = "SeapForImageTextToText" if _holds_decoder(base) else "SeapForCausalLM"
        auto_class = _REMOTE[name]
    elif base.__name__.endswith("Model"):
        name, auto_class = "SeapModel", "AutoModel"
    else:
        return None
    if base not in _subclasses:
        place = f"{_ADOPTED}{base.__module__}:{base.__name__}".replace(".", "|")
        members: dict[str, Any] = {"__module__": __name__, "__qualname__": place, "_auto_class": auto_class}
        members["save_pretrained"] = _saving(base)
        if "is_custom_code" in dir(base):  # whose buffers transformers doesn't compute as it loads a model
            members["is_custom_code"] = classmethod(lambda cls: base.is_custom_code())
        _subclasses[base] = type(name, (base,), members)
    return _subclasses[base]


def _holds_decoder(base: Any) -> bool:
    """Whether a class is of multimodal models, whose text decoder has a config inside theirs."""
    kind = getattr(base, "config_class", None)
    return any("text_config" in (getattr(kind, name, None) or {}) for name in ("sub_configs", "sub_configs_defaults"))


def _holds_pruned(kind: type, config: Any) -> bool:
    """Whether a multimodal model's text decoder is pruned."""
    return _holds_decoder(kind) and bool(getattr(config.get_text_config(decoder=True), "seap", None))


def _saving(base: Any) -> Any:
    """A family's `save_pretrained` that also writes what is known of the pruning."""

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        kept = kept_files(self)  # before the folder changes, which may be the one that the model came from
        done = base.save_pretrained(self, save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_kept(kept, Path(save_directory))
        return done

    save_pretrained.__doc__ = base.save_pretrained.__doc__
    return save_pretrained


def remember_(model: Any) -> None:
    """Have a model whose class is still a stock one write what is known of its pruning when it is saved."""
    base = type(model)
    if ("save_pretrained" in vars(base) and base.__module__ == __name__) or "_seap_stock" in vars(base):
        return
    members = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_seap_stock": True}
    model.__class__ = type(base.__name__, (base,), members | {"save_pretrained": _saving(base)})


def kept_files(model: Any) -> dict[str, bytes]:
    """What is known of how a model was pruned, as files of its folder: noted when it was, or of where it came from.

    Nothing where the folder that it came from now has other widths. Digests are left out: they were of other files.
    """
    noted = getattr(model, "_seap_files", None)
    if noted is not None:
        return dict(noted)
    found = {name: content for name in _KEPT if (content := file_beside(model.config, name)) is not None}
    config = file_beside(model.config, "config.json")
    own = json.loads(model.config.to_json_string(use_diff=False))
    if config is None or _about_layers(json.loads(config)) != _about_layers(own):
        return {}
    if "seap.json" in found:
        told = json.loads(found["seap.json"])
        told.pop("digests", None)
        found["seap.json"] = (json.dumps(told | {"saved_again": True}, indent=2) + "\n").encode()
    if "README.md" in found and _SAVED_AGAIN.encode() not in found["README.md"]:
        found["README.md"] += _SAVED_AGAIN.encode()
    return found


def _about_layers(config: Mapping[str, Any]) -> list[Any]:
    """What a config says of widths, itself or in the config of the text decoder that it holds."""
    inside = [part for part in config.values() if isinstance(part, dict) and "seap" in part]
    told = config if "seap" in config or not inside else inside[0]
    return [told.get("seap"), told.get("per_layer_config")]


def file_beside(config: Any, name: str) -> bytes | None:
    """A file of the folder, or of the Hub's cache, that a model came from."""
    from transformers.utils import cached_file

    source = getattr(config, "_name_or_path", "")
    try:
        path = source and cached_file(source, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        return Path(path).read_bytes() if path else None
    except (OSError, ValueError):
        return None


def write_kept(files: Mapping[str, bytes], folder: Path) -> None:
    """Write what `kept_files` found; a README of somebody else's stays."""
    for name, content in files.items():
        path = folder / name
        if name == "README.md" and path.is_file() and b"seap" not in path.read_bytes().partition(b"\n---")[0]:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def adopt_(model: Any) -> None:
    """Make a pruned model's class one that saves this file with the model, and weights under the names that it has.

    transformers saves some families' weights under older names (GPT-NeoX's lm_head as embed_out), which it doesn't
    know again for a class that isn't its own. vLLM saves nothing, and decorates a class's constructor before it builds
    the model: there the class stays.
    """
    model._weight_conversions = []
    if "vllm" not in sys.modules and type(model) not in _subclasses.values():
        model.__class__ = adopted(type(model)) or type(model)


def __getattr__(name: str) -> Any:
    """Where pickle finds an adopted class again, and transformers the classes that `auto_map` names."""
    if name in _BLOCKS:
        return _block_class(name)
    if name in _REMOTE:
        globals()[name] = remote = _remote_class(name)
        return remote
    if not name.startswith(_ADOPTED):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, base = name.removeprefix(_ADOPTED).replace("|", ".").partition(":")
    return adopted(getattr(importlib.import_module(module), base))


def name_what_it_needs_(config: Any) -> None:
    """Have a transformers that knows nothing of pruned layers end with what to do, not with a list of shapes.

    It refuses an attention implementation that it doesn't know by its name, before it reads a weight, and that name is
    written in config.json. What builds the layers here takes it away again.
    """
    config.attn_implementation = NEEDS


def _per_layer_init(layer_class: Any) -> Any:
    """The constructor of a family's decoder layer, extended to read this layer's widths."""
    stock = layer_class.__init__

    def __init__(self: Any, config: Any, layer_idx: int | None = None, *args: Any, **kwargs: Any) -> None:
        spec = getattr(config, "seap", None)
        if not spec or layer_idx is None:
            # families differ in whether the index is optional: pass on exactly what came in
            index = () if layer_idx is None else (layer_idx,)
            stock(self, config, *index, *args, **kwargs)
            return
        stock(self, LayerConfig(config, layer_widths(config, layer_idx)), layer_idx, *args, **kwargs)
        if "resized" in spec:
            _resize_(self, spec["resized"], layer_widths(config, layer_idx))
        if "blocks" in spec:
            _without_blocks_(self, config, layer_idx)
        for path, layers in spec["added_bias"].items():
            if layer_idx in layers:
                add_bias_(self.get_submodule(path), config.hidden_size)

    __init__._seap = True  # type: ignore[attr-defined]
    return __init__


def _without_blocks_(layer: Any, config: Any, index: int) -> None:
    """Take out what a layer hasn't got, and give its attention the place in a KV cache that it fills."""
    spec, gone = config.seap, skipped(config, index)
    written = {kind: config.hidden_size if index in spec["written"][kind] else 0 for kind in gone}
    if written:
        drop_(layer, spec["blocks"], written)
    consumer = spec["blocks"]["attention"]["consumer"]
    if "attention" not in gone and _at(layer, consumer) is not None:  # a layer of another kind has none
        layer.get_submodule(consumer.rpartition(".")[0]).layer_idx = cache_place(config, index)


def _at(layer: Any, path: str) -> Any:
    """What a layer has at a path; None where it has nothing there."""
    for name in path.split("."):
        layer = getattr(layer, name, None)
    return layer


def _resize_(layer: Any, resized: Mapping[str, Mapping[str, str]], widths: Mapping[str, int]) -> None:
    """Make linears anew whose width the family's class takes from another entry than the one that says it."""
    import torch

    for key, linears in resized.items():
        for path, side in linears.items():
            old = _at(layer, path)
            if old is not None and getattr(old, side) != widths[key]:
                sizes = {"in_features": old.in_features, "out_features": old.out_features, side: widths[key]}
                like = {"dtype": old.weight.dtype, "device": old.weight.device}
                layer.set_submodule(path, torch.nn.Linear(**sizes, bias=old.bias is not None, **like))


def patch_layer_class(model_class: type, names: str | Sequence[str]) -> dict[str, Any]:
    """Find the decoder layers' classes beside the model's class, let them read per-layer widths, and return them."""
    found = {}
    for name in [names] if isinstance(names, str) else names:
        places = [getattr(sys.modules.get(base.__module__), name, None) for base in model_class.__mro__]
        layer_class: Any = next((place for place in places if isinstance(place, type)), None)
        if layer_class is None:
            raise ImportError(
                f"this transformers has no {name} beside {model_class.__name__}, which this pruned checkpoint is built "
                "of; install the transformers version that seap.json names"
            )
        if not hasattr(layer_class.__init__, "_seap"):
            layer_class.__init__ = _per_layer_init(layer_class)
        found[name] = layer_class
    return found


def _patch_models(modeling_utils: ModuleType) -> None:
    """Let every transformers model whose config has a `seap` entry build its layers with their own widths."""
    base = modeling_utils.PreTrainedModel
    if hasattr(base.__init__, "_seap"):
        return
    stock = base.__init__

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(config, "_attn_implementation", None) == NEEDS:
            config._attn_implementation = None  # what needs seap has it
        stock(self, config, *args, **kwargs)
        spec = getattr(config, "seap", None)
        if spec:
            name_what_it_needs_(config)
            patch_layer_class(type(self), spec["layer_class"])
            adopt_(self)
        elif "generate" in dir(type(self)) and _holds_pruned(type(self), config):
            adopt_(self)

    __init__._seap = True  # type: ignore[attr-defined]
    base.__init__ = __init__


class _AfterImport(importlib.abc.MetaPathFinder):
    """Patches transformers' model base class when it is first imported, so that importing seap stays cheap."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != _HOOKED_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        stock = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            stock(module)
            _patch_models(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _is_not_about_widths(record: logging.LogRecord) -> bool:
    """The widths are read layer by layer here, so the global ones that transformers warns about mislead nobody."""
    return "Reading global config value" not in record.getMessage()


def _is_not_about_names(record: logging.LogRecord) -> bool:
    """A pipeline knows a model by its class's name, and lists all that it knows where it meets another one."""
    message = record.getMessage()
    return not any(f"model '{name}' is not supported for text-generation" in message for name in _REMOTE)


def install() -> None:
    """Make transformers load pruned checkpoints; called by `import seap` and by the class below."""
    logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").addFilter(_is_not_about_widths)
    logging.getLogger("transformers.pipelines.base").addFilter(_is_not_about_names)
    if _HOOKED_MODULE in sys.modules:
        _patch_models(sys.modules[_HOOKED_MODULE])
    elif not any(type(finder).__name__ == "_AfterImport" for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _Remote:
    """What `auto_map` names: hands over to the family's own class, whose layers then get their own widths."""

    auto_name: str
    config_class: Any = None  # any family's

    @classmethod
    def _stock(cls, config: Any) -> Any:
        import transformers

        install()
        return getattr(transformers, cls.auto_name)._model_mapping[type(config)]

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        if config is None:
            import transformers

            config = transformers.AutoConfig.from_pretrained(path)
        return cls._stock(config).from_pretrained(path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        return cls._stock(config)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to note: the class that `adopt_` makes knows its auto class."""

    @classmethod
    def is_backend_compatible(cls) -> bool:
        """vLLM asks this before it runs a model through its Transformers backend."""
        return True


def _remote_class(name: str) -> type:
    """A subclass of PreTrainedModel, as vLLM wants; made when it is asked for, so that `import seap` stays cheap."""
    import transformers

    return type(name, (_Remote, transformers.PreTrainedModel), {"__module__": __name__, "auto_name": _REMOTE[name]})
