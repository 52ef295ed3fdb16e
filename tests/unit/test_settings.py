import re
from pathlib import Path

import pytest

from cosmos_coherence import errors, settings, tables


def test_nothing_is_needed(tmp_path):
    found = settings.load(tmp_path, environ={})
    assert found.cut.max_pause == 1.0
    assert found.retention.keep_within == 7 * 86400
    assert found.stack.directory == tmp_path


def test_environment_overrules_the_file_and_a_call_overrules_both(tmp_path):
    (tmp_path / "cosmos.toml").write_text('[cut]\nmax_pause = "250ms"\n[retention]\nkeep_within = "2w"\n')
    environ = {"COSMOS_CUT__MAX_PAUSE": "2s", "COSMOS_PROJECT": "one"}
    found = settings.load(tmp_path, environ=environ, stack__project="two")
    assert found.cut.max_pause == 2.0
    assert found.retention.keep_within == 14 * 86400
    assert found.stack.project == "two"


def test_every_fault_is_named_at_once(tmp_path):
    (tmp_path / "cosmos.toml").write_text('[cut]\nmax_pause = "soon"\n[backup]\nworkers = 0\n[stak]\n')
    with pytest.raises(errors.ConfigurationError) as caught:
        settings.load(tmp_path, environ={})
    for name in ("cut.max_pause", "backup.workers", "stak"):
        assert name in caught.value.message


def test_a_file_that_is_no_toml(tmp_path):
    (tmp_path / "cosmos.toml").write_text("[cut\n")
    with pytest.raises(errors.ConfigurationError, match=r"cosmos\.toml"):
        settings.load(tmp_path, environ={})


@pytest.mark.parametrize(("text", "value"), [("500ms", 0.5), ("1s", 1), ("10m", 600), ("12h", 43200), ("7d", 604800)])
def test_durations(text, value):
    assert settings.seconds(text) == value


@pytest.mark.parametrize("text", ["", "1", "-1s", "1 year", "s", "1e9s"])
def test_no_durations(text):
    with pytest.raises(ValueError, match="duration"):
        settings.seconds(text)


def test_every_setting_is_in_the_manual():
    manual = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    missing = [name for name in tables.names(settings.Settings) if f"`{name}`" not in manual and name != "source"]
    assert missing == []


def test_the_agent_of_the_reference_stack_takes_every_rhythm_and_has_the_programs_own_by_itself(tmp_path):
    root = Path(__file__).parents[2]
    given = dict(re.findall(r"COSMOS_(SCHEDULE__\w+): \$\{COSMOS_\1:-(.*)\}", (root / "compose.yaml").read_text()))
    shown = dict(re.findall(r"# COSMOS_(SCHEDULE__\w+)=(.*)", (root / ".env.example").read_text()))
    assert given == shown
    names = {name.removeprefix("SCHEDULE__").lower() for name in given}
    assert names == set(tables.names(settings.ScheduleSettings)) - {"check_data"}
    found = settings.load(tmp_path, environ={f"COSMOS_{name}": value for name, value in given.items()})
    assert found.schedule == settings.ScheduleSettings()
