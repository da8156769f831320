"""References to the environment stay where a configuration is stored, and are followed where a part is built."""

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.config.references import fingerprints, guard_environment, read, refers, settled
from vidtrain.files import escaping


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(escaping, "_replacements", {})
    monkeypatch.setenv("ROOT", "/data/mine")
    monkeypatch.setenv("PW", "open sesame")
    monkeypatch.delenv("GONE", raising=False)
    guard_environment()


CONFIG = {
    "root": "${oc.env:ROOT}",
    "source": {"root": "${root}/videos", "seed": "${seed}", "list": [1, "${seed}", "${oc.env:GONE}"]},
    "copy": "${source}",
    "plain": "${other}",
    "other": {"a": "${seed}", "none": None},
    "uri": "http://u:${oc.env:PW}@h",
    "literal": "http://u:pw@h",
    "default": "${oc.env:GONE,7}",
    "nested": "${oc.decode:${oc.env:GONE,7}}",
    "seed": 3,
    "missing": "???",
}


def test_what_leads_to_the_environment_stays_as_it_was_written():
    assert settled(OmegaConf.create(CONFIG)) == {
        "root": "${oc.env:ROOT}",
        "source": {"root": "${root}/videos", "seed": 3, "list": [1, 3, "${oc.env:GONE}"]},
        "copy": {"root": "${root}/videos", "seed": 3, "list": [1, 3, "${oc.env:GONE}"]},
        "plain": {"a": 3, "none": None},
        "other": {"a": 3, "none": None},
        "uri": "http://u:${oc.env:PW}@h",
        "literal": "http://u:***@h",
        "default": "${oc.env:GONE,7}",
        "nested": "${oc.decode:${oc.env:GONE,7}}",
        "seed": 3,
        "missing": "???",
    }


def test_a_stored_one_is_the_same_configuration_again():
    stored = OmegaConf.create(settled(OmegaConf.create(CONFIG)))
    assert OmegaConf.to_yaml(stored) == OmegaConf.to_yaml(OmegaConf.create(settled(stored)))
    assert (stored.source.root, stored.uri, stored.nested) == (
        "/data/mine/videos",
        "http://u:open sesame@h",
        7,
    )


def test_other_references_that_lead_nowhere_are_faults():
    with pytest.raises(OmegaConfBaseException, match="nowhere"):
        settled(OmegaConf.create({"a": "${nowhere}"}))


def test_what_was_read_from_a_secret_variable_is_masked_from_then_on():
    assert OmegaConf.create(CONFIG).uri == "http://u:open sesame@h"
    assert escaping.masked("it is open sesame") == "it is ${oc.env:PW}"


def test_fingerprints_tell_that_a_value_changed_and_not_which_it_is(monkeypatch):
    config = OmegaConf.create({"lr": "${oc.env:LR}", "seed": 1, "steps": [1, "${oc.env:LR}"]})
    monkeypatch.setenv("LR", "0.1")
    kept = settled(config)
    assert [refers(kept[key]) for key in ("lr", "seed", "steps")] == [True, False, True]
    assert read(config, "steps") == [1, "0.1"]
    before = fingerprints(config, kept)
    assert before.keys() == {"lr", "steps"} and "0.1" not in str(before)
    assert fingerprints(config, kept) == before
    monkeypatch.setenv("LR", "0.2")
    after = fingerprints(config, kept)
    assert after["lr"] != before["lr"] and after["steps"] != before["steps"]
