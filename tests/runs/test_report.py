"""The close of a run: baselines beside it."""

from types import SimpleNamespace

from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.runs.report import beside_baselines


def test_damaged_baselines_cost_a_warning_and_not_the_run(tmp_path):
    folder = tmp_path / "baselines" / "abc"
    folder.mkdir(parents=True)
    (folder / "baselines.json").write_text("{")
    splits = {"test": Manifest([Record("a.mp4", 0, "a.mp4")], ["jump"])}
    data, told = SimpleNamespace(splits=splits, index_folder=tmp_path, digests={}), []
    console = SimpleNamespace(warn=told.append)
    assert beside_baselines(data, "test", tmp_path / "predictions.csv", console) == []
    (warning,) = told
    assert "baselines.json cannot be read" in warning and "vidtrain.baselines again" in warning
