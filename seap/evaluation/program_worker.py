"""A process of its own in which one program that a model wrote runs, then the checks that it must pass.

Run by `programs.py` as a script (`python -I -S -B`); it imports nothing of seap. On stdin a line of JSON with the
program and the limits; once that has run, a word that only who passes the checks says, a line break, and the checks.
Answers go, a line each, to the pipe whose number stands on the command line.

Closed before the program runs: processes, sockets, files but for reading Python's own modules, more memory, processor
time or open files than allowed. By the interpreter's audit hook, and where Linux lets it by a filter of system calls,
which holds for native code too. What runs after the program has hold of all that it needs before, since the program can
change whatever has a name.
"""

import builtins
import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

READABLE = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero", "/usr/share/zoneinfo", "/etc/localtime")
CLOSED = (
    *("socket.", "subprocess.", "ctypes.", "os.fork", "os.exec", "os.spawn", "os.posix_spawn", "os.system", "pty."),
    *("os.kill", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("os.chown", "os.chflags", "os.lchown", "os.lchmod", "os.utime", "os.setxattr", "os.removexattr", "shutil."),
    *("tempfile.", "signal.pthread_kill", "fcntl.", "resource.", "syslog.", "sqlite3.", "mmap.", "webbrowser."),
    *(
        "sys.settrace",
        "sys.setprofile",
        "sys.addaudithook",
        "sys.remote_exec",
        "gc.get_",
        "http.",
        "urllib.",
        "ftplib.",
    ),
)
LISTED = ("os.listdir", "os.scandir", "os.walk", "glob.", "pathlib.Path.")
NO_IMPORT = ("ctypes", "_ctypes", "_posixsubprocess", "multiprocessing", "_multiprocessing", "cffi", "_cffi_backend")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def limit(limits: dict[str, int]) -> None:
    """Memory, processor time, what a file may hold, open files; nobody raises them again."""
    import resource

    wanted = {"AS": limits["memory"], "DATA": limits["memory"], "CPU": limits["seconds"] + 1}
    wanted |= {"FSIZE": 0, "CORE": 0, "NOFILE": 32, "MEMLOCK": 0}
    for name, most in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            try:
                resource.setrlimit(kind, (most, most))
            except (ValueError, OSError):  # macOS refuses some of them
                continue


def hook(readable: tuple[str, ...]) -> Callable[[str, tuple[Any, ...]], None]:
    """Refuses what a program has no business with. Audit hooks can't be taken away again."""
    closed, listed, banned, writes, written = CLOSED, LISTED, frozenset(NO_IMPORT), WRITES, frozenset("wax+")
    inside = tuple(f"{place}/" for place in readable)
    error, kind, number, string, raw = PermissionError, type, int, str, bytes

    def may_read(path: Any) -> bool:
        if kind(path) is number:  # open already
            return True
        if kind(path) is raw:
            path = path.decode("utf-8", "replace")
        return kind(path) is string and "/.." not in path and (path in readable or path.startswith(inside))

    def look(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = given
            asks = not written.isdisjoint(mode) if kind(mode) is string else False
            if asks or (kind(flags) is number and flags & writes) or not may_read(path):
                raise error("a generated program may open no file")
        elif event == "import":
            if given[0].partition(".")[0] in banned:
                raise error("a generated program may not import this module")
        elif event.startswith(closed):
            raise error("a generated program may not do this: " + event)
        elif event.startswith(listed) and given and given[0] is not None and not may_read(given[0]):
            raise error("a generated program may look into no folder")

    return look


# Numbers of system calls on x86-64 and 64-bit ARM; None where there is none.
DENIED: dict[str, tuple[int | None, int | None]] = {
    **{"fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281)},
    **{"socket": (41, 198), "socketpair": (53, 199), "ptrace": (101, 117), "kill": (62, 129), "tkill": (200, 130)},
    **{"vm_readv": (310, 270), "vm_writev": (311, 271), "setrlimit": (160, 164), "unshare": (272, 97)},
    **{"setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"bpf": (321, 280), "perf": (298, 241), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218)},
    **{"by_handle": (304, 265), "userfaultfd": (323, 282), "setsid": (112, 157), "setpgid": (109, 154)},
    **{"creat": (85, None), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276)},
    **{"mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35)},
    **{"link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "chmod": (90, None)},
    **{"fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "lchown": (94, None), "fchown": (93, 55)},
    **{"fchownat": (260, 54), "truncate": (76, 45), "ftruncate": (77, 46), "mknod": (133, None)},
    **{"mknodat": (259, 33), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7)},
    **{"io_uring": (425, 425), "pidfd_open": (434, 434), "pidfd_signal": (424, 424), "init_module": (175, 105)},
}
ABSENT = {"clone3": (435, 435), "openat2": (437, 437)}  # arguments behind pointers; libraries have another way
CLONE_THREAD = 0x10000
# Call, the 32 bits of its arguments that are looked at (offset), which bits, and whether it is refused if they are set.
BY_BITS: tuple[tuple[tuple[int | None, int | None], int, int, bool], ...] = (
    ((56, 220), 16, CLONE_THREAD, False),  # clone: threads alone
    ((2, None), 24, WRITES, True),  # open
    ((257, 56), 32, WRITES, True),  # openat
    ((302, 261), 32, 0xFFFFFFFF, True),  # prlimit with new limits, a pointer
    ((302, 261), 36, 0xFFFFFFFF, True),
)
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
LOAD, EQUAL, ATLEAST, SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, NOT_PERMITTED, NOT_THERE = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38


def call_filter(which: int, architecture: int) -> list[tuple[int, int, int, int]]:
    """Instructions of a classic BPF program over a call's number (offset 0), architecture (4) and arguments (16 …)."""
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    if which == 0:
        code += [(ATLEAST, 0, 1, 0x40000000), (RETURN, 0, 0, KILL)]  # the x32 calls have numbers of their own
    for calls, told in ((DENIED, NOT_PERMITTED), (ABSENT, NOT_THERE)):
        for number in (pair[which] for pair in calls.values()):
            code += [] if number is None else [(EQUAL, 0, 1, number), (RETURN, 0, 0, told)]
    for numbers, offset, bits, refused in BY_BITS:
        number = numbers[which]
        if number is not None:
            code += [(EQUAL, 0, 4, number), (LOAD, 0, 0, offset), (SET, *((0, 1) if refused else (1, 0)), bits)]
            code += [(RETURN, 0, 0, NOT_PERMITTED), (LOAD, 0, 0, 0)]
    return [*code, (RETURN, 0, 0, ALLOW)]


def close_calls() -> bool:
    """Close system calls to this process for good. False where the system doesn't let it."""
    import ctypes
    import platform

    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES or sys.maxsize < 1 << 32:
        return False
    code = call_filter(*ARCHITECTURES[platform.machine()])
    packed = b"".join(struct.pack("=HBBI", *one) for one in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(buffer)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    zero = ctypes.c_ulong(0)
    if prctl(no_new_privileges, ctypes.c_ulong(1), zero, zero, zero):
        return False
    return bool(prctl(set_seccomp, ctypes.c_ulong(by_filter), program, zero, zero) == 0)


def same_by() -> Callable[[Any, Any], bool]:
    """== of values; false where a class that no file of Python's has says itself what is equal to it."""
    mro, kind, names = type.mro, type, vars
    place: Any = (lambda: None).__class__.__code__.__get__  # type: ignore[attr-defined]
    function = kind(same_by)

    def own(value: Any) -> bool:
        for one in mro(kind(value)):
            for name in ("__eq__", "__ne__"):
                found = names(one).get(name)
                if kind(found) is function and place(found).co_filename.startswith("<"):
                    return True
        return False

    def same(a: Any, b: Any) -> bool:
        return not own(a) and not own(b) and (True if a == b else False)  # noqa: SIM210  bool is the program's to change

    return same


def run(program: str, asked: list[str], say: Callable[[bytes], Any]) -> None:
    """Run the program, then the checks in a namespace whose builtins it hasn't touched, but for what is asked of it."""
    untouched, names, same = dict(vars(builtins)), frozenset(dir(builtins)) - frozenset(asked), same_by()
    execute, build, read, end, kind, base = exec, compile, os.read, os._exit, type, BaseException
    space: dict[str, Any] = {"__name__": "__program__"}
    stage, given, encode = "program", b"", str.encode
    try:
        execute(build(program, "<program>", "exec", 0, True), space)
        say(b"loaded\n")
        while part := read(0, 1 << 16):
            given += part
        word, _, checks = given.partition(b"\n")
        stage = "checks"
        known = {name: value for name, value in space.items() if name not in names and not name.startswith("__")}
        known.update({"__builtins__": untouched, "__same__": same, "__name__": "__checks__"})
        execute(build(checks, "<checks>", "exec", 0, True), known)
        say(word + b"\n")
    except base as error:
        say(encode(stage + ": " + kind(error).__name__ + "\n"))
    end(0)  # without waiting for threads, or running what is to be run at the end


def main() -> None:
    pipe, write = int(sys.argv[1]), os.write
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:  # whoever started this is gone
            return
        line += part
    given = json.loads(line)
    readable = (*(os.path.realpath(one) for one in sys.path if one), *(one for one in sys.path if one), *READABLE)
    limit(given["limits"])
    closed = ["limits", "audit hook", *(["system calls"] if close_calls() else [])]
    for name in [one for one in sys.modules if one.partition(".")[0] in NO_IMPORT]:
        del sys.modules[name]
    sys.addaudithook(hook(readable))
    write(pipe, f"ready {json.dumps(closed)}\n".encode())
    run(given["program"], given["asked"], lambda text: write(pipe, text))


if __name__ == "__main__":
    main()
