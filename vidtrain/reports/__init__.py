"""Pictures and pages made from plain values; nothing here reads a run by itself.

Read charts.py first.

charts.py          what all charts share: colors, axes, PNG files, names in any script
plots.py           curves, confusion matrix, what views are worth
frames.py          frames with heat and captions, contact sheets, mistakes, a timeline
pages.py           HTML pages from templates/; that of an audit; a picture that fails is warned of
run_page.py        the page of a run, kept small enough to be mailed
run_charts.py      its charts, as places in inline SVG
compare_page.py    the page and the CSV tables of a comparison
compare_charts.py  its charts, with those of a sweep
model_card.py      a finished run as a model card
"""
