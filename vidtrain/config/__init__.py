"""Configurations as text and types: schemas, checks, overrides, and configurations stored by old versions or others.

Read schemas.py first.

schemas.py          every setting of programs for models, its default, and its allowed values
dataset_schemas.py  the same for programs that inspect or make datasets
targets.py          check_settings and check_targets, which find all faults of a configuration
overrides.py        the command line: flags, overrides, arguments without =; which stored overrides are harmless
references.py       plain values of a configuration; references to the environment, and to published clips
renames.py          renamed components, keys and values; migration of stored configurations
trust.py            which classes and references a configuration from somebody else may name
"""
