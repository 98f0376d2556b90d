"""A process of its own in which chat templates run: strangers' code, if only jinja's, that may loop or write for ever.

Run by `templates.py` as a script. A request is a line of JSON on stdin, its answer a line on stdout. It imports nothing
of seap.
"""

import json
import signal
import sys
from typing import Any

MEMORY = 1 << 29  # bytes beyond what the process has when it starts


def limit_memory() -> None:
    """Where the system can: a string that doubles in a loop ends in an error here, not in the machine's memory."""
    try:
        import resource
        from pathlib import Path

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, OSError, ValueError):
        return


def answer(request: dict[str, Any]) -> dict[str, str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            conversations=[request["messages"]], chat_template=request["template"], **request["arguments"]
        )
        [text] = rendered
    except MemoryError:
        return {"error": f"it needs more than {MEMORY >> 20} MB of memory"}
    except Exception as error:  # templates raise what they like, for roles out of turn for instance
        return {"error": (str(error).strip() or type(error).__name__)[:500]}
    if len(text) > request["most"]:
        return {"error": f"it wrote {len(text):,} characters, more than {request['most']:,}"}
    return {"text": text}


def main() -> None:
    import transformers.utils.chat_template_utils  # noqa: F401  what takes a second is done before the clock runs

    limit_memory()
    print(json.dumps({"text": "ready"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if hasattr(signal, "alarm"):  # ends this process also where the one that started it is gone
            signal.alarm(int(request["seconds"]) + 2)
        told = json.dumps(answer(request))
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        print(told, flush=True)


if __name__ == "__main__":
    main()
