"""Where a trial stands, seen while it moves on."""

import json

from vidtrain.sweeps import record
from vidtrain.sweeps.record import Trial


def test_a_trial_that_ends_while_it_is_looked_at_is_finished_and_not_stalled(tmp_path, monkeypatch):
    """It would be launched once more. The run lets go of its folder after it has written its summary."""
    trial = Trial(0, "0", [])
    folder = tmp_path / trial.folder
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    summary = {"status": "finished", "best": 0.5, "steps": 10, "minutes": 1.0}

    def ends_now(place):
        (place / "summary.json").write_text(json.dumps(summary))
        return False

    monkeypatch.setattr(record, "is_held", ends_now)
    state = record.trial_state(tmp_path, trial)
    assert (state.state, state.objective, state.step) == (record.FINISHED, 0.5, 10)
