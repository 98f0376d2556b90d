"""Masks → a smaller model, saved.

In: a model, its tasks or statistics or masks. Out: the cut model, a `Report`, and a checkpoint folder that reloads.

Open `prune.py` first: the only file that knows the order of the stages. `texts.py` reads the tasks, `vocabulary.py` has
the vocabulary cut before anything is measured. `surgery.py` turns a mask into smaller linears, `whole_layers.py` takes
layers out; `ready.py` says before that whether a model can be cut, `probe.py` runs it masked, cut and saved;
`sequential.py` refits layer after layer; `streaming.py` does it for models larger than memory, `together.py` by several
processes of Ray's. `checkpoint.py` writes the folder, `card.py` its model card. `commands.py` and `stages.py` do it
over files: prune; calibrate, mask and merge. `proposal.py` tries a row for a family that isn't known.

Not here: measuring what was lost (evaluation/, evidence/).
"""
