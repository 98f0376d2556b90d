"""A path and what is written there → a result whole under its name, and nothing of anybody else's lost.

In: a target, its kind (a file, or a folder of seap's own), whether it may take an older result's place. Out: the
target, replaced in one step, or as it was.

Open `whole.py` first (`written_whole`), then `claim.py`: what a command holds from its start to its end (checks, a
lock, what killed runs left). `place.py` refuses, `kinds.py` tells seap's own from foreign, `manifest.py` lists a
folder's own files, `replace.py` puts a draft in its place, `rooms.py` has the temporary folders, `digests.py` the
checksums.

Not here: what is in the files (files.py and the rooms that write them).
"""
