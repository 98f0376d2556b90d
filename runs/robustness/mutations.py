"""Damage to files, by seed: what editors, half copies, other programs and other versions make of them."""

import copy
import json
import random
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.5, 10**6, 2**31, 2**63, 2**64, 10**30, -(2**63), 1e308, 1e-320),
    *(
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "0",
        "-1",
        "none",
        "../../x",
        "a\nb",
        "\0",
        "\ud83d",
        "é" * 50,
        "9" * 5000,
    ),
    *([], {}, [[]], [None], ["a"], [1, 2], {"a": 1}, {"": None}, [{}], [[1], [2, 3]], [1e400], {"kind": "mask"}),
)
BYTES = (b"\0", b"\xff", b"\xff\xfe", b"{", b"[", b'"', b"\\ud83d", b"null", b"NaN", b"\n", b"\r", b",", b";", b"1e999")


def damage(path: Path, rng: random.Random) -> str:
    """Change a file in place; says how, in a word."""
    if path.suffix == ".safetensors" and rng.random() < 0.85:
        return damage_safetensors(path, rng)
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.75:
        return damage_json(path, rng)
    return damage_bytes(path, rng)


def damage_bytes(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    how = rng.choice(("cut", "emptied", "bytes", "bytes", "insert", "insert", "remove", "double", "noise"))
    if how == "cut":
        del data[rng.randrange(len(data) + 1) :]
    elif how == "emptied":
        data.clear()
    elif how == "double":
        data += bytes(data)
    elif how == "noise":
        data = bytearray(rng.randbytes(rng.randrange(1, 400)))
    else:
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(data) + 1)
            if how == "insert":
                data[place:place] = rng.choice(BYTES)
            elif how == "remove":
                del data[place : place + rng.randint(1, 30)]
            elif place < len(data):
                data[place] = rng.randrange(256)
    path.write_bytes(data)
    return how


def damage_json(path: Path, rng: random.Random) -> str:
    """A key gone, a value of another type, a level more or less; the rest stays JSON."""
    lines = path.suffix == ".jsonl"
    text = path.read_text()
    rows = [json.loads(line) for line in text.splitlines() if line.strip()] if lines else [json.loads(text)]
    place = rng.randrange(len(rows))
    rows[place], how = changed(rows[place], rng)
    separators = "\n" if lines else ""
    path.write_text(separators.join(json.dumps(row) for row in rows))
    return how


def changed(value: Any, rng: random.Random) -> tuple[Any, str]:
    """A JSON value with one to three places changed."""
    found = copy.deepcopy(value)
    hows = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found, how = _changed_once(found, rng)
        hows.append(how)
    return found, "+".join(hows)


def _changed_once(value: Any, rng: random.Random) -> tuple[Any, str]:
    holders = [holder for holder in _holders(value) if len(holder)]
    if not holders or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(ODD)), "replaced"
    # the upper levels as often as the many small parts of the lower ones
    holder = holders[min(int(rng.expovariate(1 / (1 + len(holders) / 4))), len(holders) - 1)]
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    how = rng.choice(("delete", "odd", "odd", "odd", "nest", "number", "swap", "rename"))
    if how == "delete":
        del holder[key]
    elif how == "nest":
        holder[key] = rng.choice(([holder[key]], {"x": holder[key]}, [holder[key], holder[key]]))
    elif how == "number" and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = rng.choice((-holder[key], holder[key] * 2 + 1, holder[key] + 1, str(holder[key]), 1.5))
    elif how == "swap":
        other = rng.choice(rng.choice(holders) and [part for part in _values(rng.choice(holders))])
        holder[key] = copy.deepcopy(other)
    elif how == "rename" and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD))
    return value, how


def _values(holder: Any) -> list[Any]:
    return list(holder.values()) if isinstance(holder, dict) else list(holder)


def _holders(value: Any) -> list[Any]:
    """Every object and list in a value, the outer ones first."""
    found, level = [], [value]
    while level:
        level = [part for part in level if isinstance(part, (dict, list))]
        found += level
        level = [part for holder in level for part in _values(holder)]
    return found


def damage_safetensors(path: Path, rng: random.Random) -> str:
    """A header that lies, metadata of another kind, tensors of another shape or type."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    how = rng.choice(
        ("metadata", "metadata", "metadata", "header", "shape", "type", "drop", "rename", "values", "length")
    )
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names) if names else "__metadata__"
    own = header.get("__metadata__", {}).get("seap")
    if how == "metadata" and own is not None:
        found, what = changed(json.loads(own), rng)
        header["__metadata__"]["seap"] = json.dumps(found)
        how = f"metadata {what}"
    elif how == "shape" and names:
        entry = header[name]
        total = 1
        for part in entry["shape"]:
            total *= part
        entry["shape"] = rng.choice(
            ([total], [1, total], [total, 1], [*entry["shape"], 1], entry["shape"][::-1], [2**62])
        )
    elif how == "type" and names:
        header[name]["dtype"] = rng.choice(("F64", "F32", "I64", "I32", "BOOL", "U8", "BF16", "F8_E4M3", "X"))
    elif how == "drop" and names:
        del header[name]
    elif how == "rename" and names:
        header[rng.choice(("x", "layers.0.channels", f"{name}x", "layers.99999999.channels.mean"))] = header.pop(name)
    elif how == "values" and body:
        for _ in range(rng.randint(1, 40)):
            body[rng.randrange(len(body))] = rng.choice((0, 255, 127, rng.randrange(256)))
    elif how == "length":
        size = rng.choice((0, 1, 2**32, 2**63 - 1, size + 8, size - 8))
        path.write_bytes((size % 2**64).to_bytes(8, "little") + data[8:])
        return how
    else:
        header, what = changed(header, rng)
        how = f"header {what}"
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)
    return how
