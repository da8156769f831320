"""Finds problems of a dataset: manifests enter, findings in plain values leave. Read summary.py first.

duplicates.py   finds similar videos
findings.py     finds groups across splits, copies, and shortcuts: file attributes that predict the class
full_decode.py  decodes a whole file, also after errors; lists its issues
inspection.py   the report on one file
summary.py      all findings of an audit as plain values
"""
