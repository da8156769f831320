"""The configuration as text and types: schemas, targets, overrides, and what earlier versions or other people stored.

Read schemas.py first.

schemas.py     every setting of every program, its default, and what it may be
targets.py     check_settings and check_targets find every fault at once
overrides.py   the command line: flags, bare words such as paths, overrides; and those that a folder may bring along
references.py  plain values of a configuration; references to the environment, and to published clips
renames.py     components, keys and values that have another name since; stored configurations brought up to date
trust.py       what a configuration from elsewhere may name and refer to
"""
