"""The configuration as text and types: schemas, targets, overrides, and what earlier versions or other people stored.

Read schemas.py first.

schemas.py           typed configuration of every program
migration.py         configurations of earlier versions, brought up to date
overrides.py         overrides that hold several values
command_line.py      flags, overrides, and bare words such as paths
references.py        references to the environment, which stay where a configuration is stored
schemas_data.py      the same of audit, prepare and split
stored_overrides.py  overrides that may be taken from the folder of a run or a sweep
targets.py           check_targets checks components against their signatures
trust.py             what a configuration from elsewhere may name and refer to
type_checks.py       what a constructor's annotations allow of plain values
renames.py           components and keys that have another name since
"""
