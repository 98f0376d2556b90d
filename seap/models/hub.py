"""A model of the Hugging Face Hub → a folder in the Hub's cache. Only what a checkpoint consists of is fetched."""

from pathlib import Path

from seap.errors import UserError, first_line
from seap.models import kinds
from seap.models.kinds import INDEX, ONE_FILE, cant_load

SMALL = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "seap/*",
    "additional_chat_templates/*",
)


def fetch(name: str, *, weights: bool, code: bool = False) -> Path:
    """The folder, fetched or as it is in the cache. code: with the model's own, for those who trust it."""
    folder = _snapshot(name, [*SMALL, *(["*.py"] if code else [])])
    if not weights:
        return folder
    if (folder / INDEX).is_file():
        named = kinds.read_json(folder / INDEX).get("weight_map")
        files = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
        wanted = [file for file in files if kinds.is_plain(file) and file.endswith(".safetensors")]
    else:
        wanted = [ONE_FILE]
    return _snapshot(name, wanted) if wanted else folder


def _snapshot(name: str, patterns: list[str]) -> Path:
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except UserError:
        raise
    except (OSError, ValueError, httpx.HTTPError) as error:  # huggingface_hub's errors are of these
        raise cant_load(
            name, f"no such folder here, and it couldn't be fetched from the Hub: {first_line(error)}"
        ) from error
