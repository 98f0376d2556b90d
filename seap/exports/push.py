"""`seap push`: a checkpoint on the Hub, with a card that has its numbers and says how to run it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seap import schema
from seap.errors import UserError, first_line
from seap.files import to_json
from seap.models import kinds
from seap.models.headers import read_headers
from seap.pruning.card import exported_card, saved_card, unknown_card
from seap.pruning.checkpoint import MASK_FILE, read_provenance
from seap.pruning.provenance import SEAP_JSON
from seap.selection.mask import load_masks

# what a checkpoint of seap's, or one exported from it, consists of; the card is written anew
CONSISTS_OF = (
    "config.json",
    "generation_config.json",
    "seap.json",
    "seap-files.json",
    "modeling_seap.py",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "seap/mask.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "sentencepiece*.model",
    "spiece.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "openvino_model.xml",
    "openvino_model.bin",
    "openvino_tokenizer.*",
    "openvino_detokenizer.*",
    "openvino_config.json",
    "model.onnx",
    "model.onnx.data",
    "genai_config.json",
    "configuration_decilm.py",
    "modeling_mlx.py",
)
CARD = "README.md"
SAME = (
    "model_type",
    "seap",
    "per_layer_config",
    "num_hidden_layers",
    "hidden_size",
    "vocab_size",
)  # after training too

Content = Path | bytes


def push(
    folder: Path,
    repo: str,
    *,
    results: Path | None = None,
    also: Sequence[Path] = (),
    provenance: Path | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Upload a pruned checkpoint, or one exported to a stock class, in one commit; or say what would be uploaded.

    results: what `seap eval DIR --json` printed, for the card. also: files to lie beside it, such as its GGUF.
    provenance: the pruned folder that this one was trained from, for one that has no seap.json. Raises UserError,
    before anything is sent, for what isn't such a folder.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no name on the Hub, such as me/llama-gsm8k: {error}") from error
    about, beside = _known(folder, provenance)
    files: dict[str, Content] = {**_files(folder, also), **beside}
    card = _card(folder, about, _rows(folder, results), repo)
    told = {
        "repo": repo,
        "url": f"https://huggingface.co/{repo}",
        "files": {name: _size(content) for name, content in sorted(files.items())},
        "card": card,
        "notes": [*_local_paths(about), *_left_behind(folder, files)],
        "uploaded": not dry_run,
    }
    if not dry_run:
        _upload(repo, files, card, private=private)
    return told


def _known(folder: Path, source: Path | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What is known of the pruning, nothing where no seap.json tells it, and the files that say it from elsewhere."""
    config = kinds.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if (folder / SEAP_JSON).is_file() and config:
        if source is not None:
            raise UserError(f"--provenance {source}: {folder} has a seap.json of its own; leave the option out")
        return read_provenance(folder), {}
    if not config or (source is None and not config.get("seap")):
        raise UserError(
            f"{folder} is no checkpoint of seap's: it needs a config.json, and the seap.json of its pruning or the "
            "widths that seap writes into the config. Was it trained from a pruned folder? Name that with --provenance"
        )
    if source is None:
        return {}, {}
    first = kinds.read_json(source / "config.json") if (source / "config.json").is_file() else {}
    if strange := [name for name in SAME if first.get(name) != config.get(name)]:
        raise UserError(f"--provenance {source}: {folder} wasn't trained from it: they differ in {', '.join(strange)}")
    told = {name: value for name, value in read_provenance(source).items() if name != "digests"} | {"saved_again": True}
    beside = {SEAP_JSON: (to_json(told, indent=2) + "\n").encode()}
    if (source / MASK_FILE).is_file():
        beside[MASK_FILE] = (source / MASK_FILE).read_bytes()
    return told, beside


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _files(folder: Path, also: Sequence[Path]) -> dict[str, Path]:
    """Name in the repository → file: what a checkpoint consists of, and what was asked for beside it.

    Raises UserError for a link that leads out of the folder, and for a file that isn't there or would take another's
    name.
    """
    kinds.check_files(folder)
    found = {
        path.relative_to(folder).as_posix(): path
        for pattern in CONSISTS_OF
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
    for path in also:
        if not path.is_file():
            raise UserError(f"--also {path}: no such file")
        if path.name in found or path.name == CARD:
            raise UserError(f"--also {path}: there is a {path.name} already; rename it")
        found[path.name] = path
    return found


def _left_behind(folder: Path, files: Mapping[str, Content]) -> list[str]:
    """What lies in the folder, is no part of a checkpoint, and is therefore not uploaded."""
    known = {*(path for path in files.values() if isinstance(path, Path)), folder / CARD}
    others = [path for path in folder.iterdir() if path not in known and not any(path in f.parents for f in known)]
    if not others:
        return []
    names = ", ".join(sorted(path.name + "/" * path.is_dir() for path in others)[:10])
    return [f"not uploaded, since no part of a checkpoint: {names}; name what should be with --also"]


def _rows(folder: Path, results: Path | None) -> list[dict[str, Any]]:
    """The rows of an evaluation of this model."""
    if results is None:
        return []
    what = f"--results {results} isn't what seap eval {folder} --json prints: it"
    found = schema.read_json(results)
    schema.check(found, schema.Evaluated, what)
    rows, model = found["rows"], found["model"]
    if Path(model).resolve() != folder.resolve():
        raise UserError(f"--results {results} are of {model}, not of {folder}")
    return [dict(row) for row in rows]


def _card(folder: Path, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], repo: str) -> str:
    if not about:
        return _card_of_weights(folder, rows, repo)
    config = json.loads((folder / "config.json").read_text())
    [class_name] = config["architectures"]
    if "exported" not in about:
        return saved_card(about, class_name, rows, is_stock=not config.get("seap"), repo=repo)
    return exported_card(about, about["exported"], class_name, rows, repo=repo)


def _card_of_weights(folder: Path, rows: Sequence[Mapping[str, Any]], repo: str) -> str:
    """Of a folder without seap.json: what its config, its weights' headers and its masks say."""
    found = kinds.look(folder)
    params = sum(math.prod(shape) for shape in read_headers(found.weights).values())
    about = load_masks(folder / MASK_FILE)[1] if (folder / MASK_FILE).is_file() else {}
    return unknown_card(found.config, params, about, rows, repo=repo)


def _local_paths(about: Mapping[str, Any]) -> list[str]:
    """Paths of this machine that seap.json and the card would tell the world, or what they won't tell."""
    if not about:
        return [
            "no seap.json here, so the card says neither what this was pruned from nor what that did; name the pruned "
            "folder that it was trained from with --provenance"
        ]
    sources = [about["model"], *(corpus.get("source", "") for corpus in about.get("corpora", {}).values())]
    paths = sorted({source for source in sources if isinstance(source, str) and Path(source).is_absolute()})
    return [f"seap.json would name {path}, a path of this machine" for path in paths]


def _upload(repo: str, files: Mapping[str, Content], card: str, *, private: bool) -> None:
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    parts = [(name, part if isinstance(part, bytes) else str(part)) for name, part in sorted(files.items())]
    operations = [CommitOperationAdd(name, part) for name, part in parts]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.create_commit(repo, operations, commit_message="Upload a model pruned by seap")
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        raise UserError(
            f"couldn't upload to {repo}: {first_line(error)}. Is this machine online, and logged in (hf auth login)?"
        ) from error
