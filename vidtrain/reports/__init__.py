"""Pictures and pages made from plain values; nothing here reads a run by itself.

Read plots.py first.

plots.py           curves and confusion matrix as PNG
audit_charts.py    its charts
audit_page.py      the audit as one HTML file
compare_charts.py  its pictures
compare_markup.py  its signed numbers and verdicts
compare_page.py    the comparison as one HTML file
compare_pairs.py   its sections on differences, classes and videos
compare_tables.py  its CSV tables
contact_sheet.py   what a model saw of a video, and where it looked
fonts.py           names in any script: fonts that have them, and what is drawn where none has
guarding.py        pictures and pages may fail: the program goes on
markup.py          building blocks of the HTML pages
model_card.py      a finished run as a model card
overlays.py        heat maps over pictures, captions below them
sweep_charts.py    parallel coordinates and importance
timeline.py        probabilities over the time of a video
top_losses.py      what a model got wrong with the most confidence, as PNG
view_charts.py     what views are worth, as PNG
"""
