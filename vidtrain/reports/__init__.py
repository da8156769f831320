"""Pictures and pages made from plain values; nothing here reads a run by itself.

Read charts.py first.

charts.py          what all charts share: colors, axes, PNG files, names in any script
plots.py           curves, confusion matrix, what views are worth
frames.py          frames with heat and captions, contact sheets, mistakes, a timeline
pages.py           what templates/ are made into: pages, that of an audit, a model card; a failed picture is a warning
run_page.py        the page of a run with its charts, kept small enough to be mailed
compare_page.py    the page and the CSV tables of a comparison
compare_charts.py  its charts, with those of a sweep
"""
