"""Parts of the report page, one file each: rows of results → HTML.

In: what `page/sources.py` read and `page/comparison.py` set against dense. Out: HTML from `page/parts.py`, with charts.
"""
