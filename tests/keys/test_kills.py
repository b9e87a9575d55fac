"""Kill flags: one field for each scope and target."""

import pytest

from keys.kills import KillFlag, decode_flag, encode_flag, kill_field


@pytest.mark.parametrize(
    ("scope", "target", "field"),
    [("global", "", "global"), ("team", "t1", "team:t1"), ("provider", "openai", "provider:openai")],
)
def test_a_flag_has_one_field(scope, target, field):
    assert kill_field(scope, target) == field


@pytest.mark.parametrize(("scope", "target"), [("galaxy", "x"), ("team", "")])
def test_an_unknown_scope_and_a_missing_target_are_refused(scope, target):
    with pytest.raises(ValueError, match="kill switch"):
        kill_field(scope, target)


def test_a_flag_survives_its_encoding():
    flag = KillFlag(kill_switch_id="1", scope="model", target="gpt", reason='a "reason"', thrown_at_s=1.5)
    assert decode_flag(encode_flag(flag)) == flag
