"""Makes pictures and pages from plain values; the callers read the runs.

Read charts.py first.

charts.py          what all charts share: colors, axes, PNG files, names in any script
plots.py           curves, the confusion matrix, the metric against clips, crops and frame orders
frames.py          frames with heat maps and captions, contact sheets, mistakes, a timeline
pages.py           renders templates/: the page of an audit, page and tables of a comparison; warns of a failed picture
run_page.py        the page of a run with its charts, kept small enough for mail
compare_charts.py  the charts of a comparison and of a sweep
"""
