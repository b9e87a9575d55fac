import pytest

from audit.records import Usage
from proxy.estimate import CALLS_MIN, FASTEST_OF_ALL, Experience, Line, Seen

HELD, MOST = 1_000, 4_000


def seen(chunks=0, output_bytes=0, shown_s=0.0, running_s=1.0, in_flight_s=0.0) -> Seen:
    return Seen(chunks, output_bytes, shown_s, running_s, in_flight_s)


def of_one_pace(tokens_per_s=100, bytes_per_token=5, tokens_per_chunk=1) -> Experience:
    experience = Experience()
    for tokens in range(50, 50 + 10 * CALLS_MIN, 10):
        stream = seen(tokens // tokens_per_chunk, tokens * bytes_per_token, running_s=tokens / tokens_per_s)
        experience.note(Usage(input_tokens=tokens, output_tokens=tokens), 100 + 4 * tokens, stream, is_stream=True)
    return experience


@pytest.mark.parametrize(
    ("cut", "is_visible", "expected"),
    [
        # Its provider's last word was heard: nothing is on its way.
        (seen(chunks=120, output_bytes=600, shown_s=1.2), True, 120),
        (seen(), True, 0),
        # 200 tokens a second, for 30 milliseconds more.
        (seen(chunks=200, output_bytes=1_000, shown_s=1.0, in_flight_s=0.03), True, 206),
        # Too short for a pace of its own: the fastest of late, and an eighth.
        (seen(chunks=2, output_bytes=10, shown_s=0.01, in_flight_s=0.1), True, 2 + 12),
        # A whole answer that never came, and output that does not show: nobody makes more in as long.
        (seen(running_s=2.0, in_flight_s=None), True, 225),
        (seen(chunks=3, output_bytes=15, shown_s=0.2, running_s=2.0), False, 225),
        # Beyond what was seen no more than is held, and what was seen in any case.
        (seen(chunks=900, output_bytes=4_500, shown_s=0.5, in_flight_s=1.0), True, HELD),
        (seen(chunks=1_200, output_bytes=6_000, shown_s=0.5, in_flight_s=1.0), True, 1_200),
        (seen(running_s=3_600.0, in_flight_s=None), True, HELD),
        # Never more than the call may make.
        (seen(chunks=5_000, output_bytes=25_000, shown_s=9.0), True, MOST),
    ],
)
def test_a_cut_call_has_made_what_was_seen_and_what_may_be_on_its_way(cut, is_visible, expected):
    assert of_one_pace().output_tokens(cut, is_visible=is_visible, held=HELD, most=MOST) == expected


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (seen(chunks=3, output_bytes=40), 10),
        (seen(chunks=30, output_bytes=40), 30),
        (seen(chunks=30, output_bytes=40, in_flight_s=0.1), 30 + FASTEST_OF_ALL // 10),
        (seen(in_flight_s=None), HELD),
    ],
)
def test_where_nothing_is_known_of_a_deployment_it_may_be_as_fast_as_any(cut, expected):
    assert Experience().output_tokens(cut, is_visible=True, held=HELD, most=MOST) == expected


def test_tokens_that_come_several_in_a_chunk_are_counted_as_their_provider_counts_them():
    experience = of_one_pace(bytes_per_token=2, tokens_per_chunk=10)
    assert experience.output_tokens(seen(chunks=8, output_bytes=160), is_visible=True, held=HELD, most=MOST) == 80


def test_a_call_without_output_has_none():
    assert Experience().output_tokens(seen(in_flight_s=None), is_visible=False, held=0, most=0) == 0


def test_a_prompt_is_reckoned_as_its_deployment_has_counted_others():
    experience = Experience()
    assert experience.input_tokens(501) == 126
    assert of_one_pace().input_tokens(500) == 100


@pytest.mark.parametrize("prompt_bytes", [0, 1, 100, 10**9])
def test_a_prompt_is_never_more_tokens_than_bytes(prompt_bytes):
    assert 0 <= of_one_pace().input_tokens(prompt_bytes) <= prompt_bytes


def test_what_scatters_is_reckoned_high():
    line = Line()
    for i in range(100):
        line.note(1_000, 200 if i % 2 else 300)
        line.note(2_000, 400 if i % 2 else 600)
    assert 300 < (line.at_most(1_000) or 0) < 500
    assert 600 < (line.at_most(2_000) or 0) < 800
    # Further away less is sure.
    assert (line.at_most(20_000) or 0) > 20_000 * 0.25


def test_a_line_forgets():
    line = Line()
    for x in range(200):
        line.note(x, 4 * x)
    for x in range(1_000):
        line.note(x, x)
    assert line.at_most(500) == pytest.approx(500, abs=1)


def test_few_calls_say_nothing():
    line = Line()
    for x in range(CALLS_MIN - 1):
        line.note(x, x)
    assert line.at_most(3) is None
    line.note(CALLS_MIN, CALLS_MIN)
    assert line.at_most(3) == pytest.approx(3, abs=0.01)


def test_prompts_that_were_all_alike_say_of_longer_ones_that_they_are_longer():
    line = Line()
    for _ in range(CALLS_MIN):
        line.note(100, 25)
    assert (line.at_most(50), line.at_most(100), line.at_most(400)) == (25, 25, 100)
