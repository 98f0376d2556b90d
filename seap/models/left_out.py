"""Weights that a checkpoint has and its model's class doesn't take: refused, or left out and said, never in silence."""

import logging
import re
from collections.abc import Iterable
from typing import Any

from seap.models.families import find_family
from seap.models.kinds import cant_load

_MARK = "_seap_left_out"
# buffers that older versions of transformers stored, and that are computed now
COMPUTED = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids)")
# what a config says of parts outside the decoder: pattern of a weight's name → pattern of the config's keys
PARTS = {r"mtp|nextn": r"mtp|nextn", r"vision|visual|image": r"vision|visual|image", r"audio|speech": r"audio|speech"}


def settle_(model: Any, unexpected: Iterable[str], name: str) -> None:
    """Refuse weights of the layers and the output layer; say what else is left out, and make the config agree.

    Raises UserError: without a weight of its layers the model would be another one.
    """
    found = sorted(key for key in map(str, unexpected) if not COMPUTED.fullmatch(key))
    if not found:
        return
    layers = find_family(model.config).layers
    inside = re.compile(rf"(.*\.)?({re.escape(layers.rpartition('.')[2])}\.\d+\.|lm_head\b|embed_out\b)")
    own = [key for key in found if inside.match(key) and not _part_of(key)]
    beyond = [key for key in own if _number(key, layers) >= model.config.num_hidden_layers]
    lost = [key for key in own if key not in beyond]
    if lost:
        raise cant_load(
            name,
            f"{len(lost)} of its weights are not used by its config, such as {lost[0]}, and would be lost; "
            "correct the config (are a bias, a norm or the output layer switched off?)",
        )
    _agree_(model.config, found, bool(beyond))
    parts = ", ".join(dict.fromkeys(_group(key) for key in found))
    text = f"{len(found)} weights that the model's class doesn't take are left out: {parts}"
    model.__dict__[_MARK] = text
    logging.getLogger("seap").warning("%s: %s", name, text)


def note(model: Any) -> list[str]:
    """What was left out when the model was loaded."""
    text = model.__dict__.get(_MARK)
    return [text] if text else []


def _part_of(key: str) -> bool:
    """Whether it is of a part beside the decoder, which may have layers of its own."""
    return any(re.match(rf"(.*\.)?\w*({pattern})", key, re.IGNORECASE) for pattern in PARTS)


def _number(key: str, layers: str) -> int:
    found = re.match(rf"(?:.*\.)?{re.escape(layers.rpartition('.')[2])}\.(\d{{1,9}})\.", key)
    return int(found.group(1)) if found else -1


def _group(key: str) -> str:
    """`mtp.*`: the part that a weight is of."""
    first, _, rest = key.partition(".")
    return f"{first}.{rest.partition('.')[0]}.*" if first in ("model", "transformer") else f"{first}.*"


def _agree_(config: Any, found: Iterable[str], beyond: bool) -> None:
    """Take out of the config what it says about the parts that are left out; numbers become 0."""
    names = " ".join(found) + (" nextn" if beyond else "")
    for part, keys in PARTS.items():
        if not re.search(part, names, re.IGNORECASE):
            continue
        for key in [key for key in config.to_dict() if re.search(keys, key, re.IGNORECASE)]:
            if type(getattr(config, key, None)) is int:
                setattr(config, key, 0)
            else:
                config.__dict__.pop(key, None)
