"""The life of one run: its folder, its assembly, its attempts, its close.

Read folder.py first.

folder.py    choosing, recording and resuming a run's folder
assemble.py  from configuration to a run; the one place where the loop's Run is assembled
attempts.py  how attempts at a run end, and whether a scheduler should try again
data.py      what the data of a run were when it was started, compared with what is there
export.py    what export does, for the end of training too
publish.py   a network that was pretrained, in the layouts of VideoMAE, V-JEPA and transformers
goals.py     what a run is for: how it is evaluated and how it closes, with labels or without
pretraining.py  the goal without labels: loss, features, probes, and the watch over their collapse
pretraining_pictures.py  masked videos, what was made of them, and their features as colors
report.py    the close of a run: its best checkpoint on test, the pictures and the page
examples.py  mistakes and doubtful right answers, as moving pictures of what the model saw
page.py      report.html, from what lies in a run's folder
"""
