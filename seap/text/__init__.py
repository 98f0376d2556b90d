"""A task → its texts and test items → rows of tokens.

In: `NAME`, `NAME=PATH` or texts in memory. Out: a `Corpus` of token rows in batches (`corpus.py`).

Open `tasks.py` first: what a task is and where it comes from. `readers.py` knows file formats (`decoding.py` their
bytes and their size, `tables.py` CSV, and Parquet in a process of its own), `hub.py` datasets on the Hub, `columns.py`
under which names a column is known, `shapes.py` which of them make an item; `items.py` makes items of rows and says
what was left out. `builtin.py` has the nine tasks that come with seap, `options.py` how much text is read.

`tokens.py` makes ids of a text, `templates.py` writes messages by a chat template, in a process of its own.

`turns.py` reads conversations, `encode.py` makes tokens of items, in the chat template or plain, and `rows.py` says
which of them count. `folders.py` and `memory.py` are other places that examples come from.

Not here: what a model does with the rows, and how answers are judged (evaluation/).
"""
