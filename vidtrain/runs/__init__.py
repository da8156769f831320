"""The life of one run: its folder, its assembly, its attempts, its close.

Read folder.py first.

folder.py    choosing, recording and resuming a run's folder
assemble.py  from configuration to a run; what a run is for; the one place where the loop's Run is assembled
attempts.py  how attempts at a run end, and whether a scheduler should try again
data.py      what the data of a run were when it was started, compared with what is there
report.py    a run that classifies: its evaluation, and its close: best checkpoint, pictures, page
pretraining.py  a run without labels: loss, features, probes, and the watch over their collapse
frozen_encoder.py  phases that train heads on a frozen encoder, on clips or on tokens that are cached on disk
token_store.py  such tokens on disk, which survive a kill
examples.py  mistakes, doubtful right answers and masked videos, as pictures of what the model saw
page.py      report.html, from what lies in a run's folder
export.py    what export does, for the end of training too
publish.py   a network that was pretrained, in the layouts of VideoMAE, V-JEPA and transformers
"""
