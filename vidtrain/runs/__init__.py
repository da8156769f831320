"""The life of one run: its folder, its assembly, its attempts, its close.

Read folder.py first.

folder.py    chooses, records and resumes a run's folder
assemble.py  assembles a run from the configuration: its data, parts, start and goal, and the loop's `Run`
attempts.py  records how attempts at a run end, and whether a scheduler should try again
data.py      records the data of a run at its start, and compares them when it is resumed or evaluated
report.py    evaluates a classifier on val; at the end its best checkpoint, with tables, pictures and the page
pretraining.py  evaluates a run without labels: loss, features, probes; detects collapsed features
frozen_encoder.py  phases that train heads on a frozen encoder, from clips or from cached tokens
token_store.py  cached tokens on disk, which survive a kill
examples.py  draws mistakes, uncertain right answers and masked videos
page.py      makes report.html from the files in a run's folder
export.py    exports a model with its model card, for the export program and for the end of training
publish.py   exports a pretrained network in the layouts of VideoMAE, V-JEPA and transformers
"""
