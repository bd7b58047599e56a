import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from keras_deepseek.errors import InvalidFieldError, InvalidInputError
from keras_deepseek.inference.errors import OverloadedError
from keras_deepseek.inference.text.row_scheduler import RowScheduler
from keras_deepseek.inference.text.row_work import CacheShape, DecodeStep, ReadChunk, Resize
from keras_deepseek.inference.text.text_request import TextRequest
from keras_deepseek.text.sampling import SamplingOptions
from tests.oracles.text_simulation import END_TOKEN, SimulatedServer, simulate

LADDER = ((1, 64), (4, 64), (4, 256))


def request_of(length=8, max_tokens=4, **options):
    return TextRequest(range(1, length + 1), SamplingOptions(max_tokens=max_tokens), **options)


def make_server(shapes=((4, 256),), chunk_size=16, **options):
    return SimulatedServer(RowScheduler(shapes, chunk_size, **options))


@pytest.mark.parametrize("seed", range(3))
def test_random_requests_get_the_answers_that_they_get_alone(seed):
    server, requests = simulate(seed, shapes=[(2, 256), (8, 256), (2, 768), (8, 768)])
    server.check_answers()
    assert set(server.outcomes) == set(requests)
    assert np.percentile(server.gaps(), 99) <= 0.1 + 0.045 + 1e-6
    assert server.works["Resize"] > 2
    assert not server.num_refused
    assert "deadline" not in server.outcomes.values()


def test_those_that_are_accepted_under_overload_are_rarely_late():
    server, requests = simulate(0, rate=2.0, number=300)
    late = Counter(server.outcomes.values())["deadline"]
    assert 200 <= len(requests) <= 280
    assert late <= 3
    assert max(times[0] - request.arrived for request, times in server.times.items()) > 45


class Clients(RuleBasedStateMachine):
    """Random submits, cancels, hang-ups, deadlines and failures."""

    requests = Bundle("requests")

    def __init__(self):
        super().__init__()
        self.server = make_server(LADDER, max_waiting=12, shrink_seconds=0.5)
        self.accepted = []

    @rule(
        target=requests,
        length=st.integers(1, 200),
        max_tokens=st.integers(0, 40),
        number=st.sampled_from([1, 1, 1, 3]),
        client=st.sampled_from("abc"),
        priority=st.sampled_from([0, 0, 0, 1]),
        seconds=st.sampled_from([math.inf, math.inf, 0.3, 2.0]),
    )
    def submit(self, length, max_tokens, number, client, priority, seconds):
        requests = [
            request_of(
                length,
                max_tokens,
                choice=choice,
                client=client,
                priority=priority,
                deadline=self.server.now + seconds,
                end_tokens=[END_TOKEN],
            )
            for choice in range(number)
        ]
        if self.server.submit(*requests):
            self.accepted += requests
        return requests[-1]

    @rule(request=consumes(requests))
    def cancel(self, request):
        self.server.cancel(request)

    @rule(turns=st.integers(1, 12))
    def work(self, turns):
        for _ in range(turns):
            if work := self.server.begin():
                self.server.end(work)

    @rule(request=consumes(requests))
    def hang_up_during_work(self, request):
        work = self.server.begin()
        self.server.cancel(request)
        if work:
            self.server.end(work)

    @rule(is_cache_lost=st.booleans())
    def fail(self, is_cache_lost):
        work = self.server.begin()
        if work:
            is_chunk = isinstance(work, ReadChunk)
            self.server.fail(work, is_cache_lost=is_cache_lost or not is_chunk)

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0]))
    def wait(self, seconds):
        self.server.now += seconds

    @invariant()
    def every_request_is_here_or_has_ended(self):
        scheduler = self.server.scheduler
        here = scheduler.num_waiting + scheduler.num_reading + len(scheduler.running)
        assert here + len(self.server.outcomes) == len(self.accepted)

    def teardown(self):
        self.server.run()
        self.server.check_answers()
        assert set(self.server.outcomes) == set(self.accepted)


class TestClients(Clients.TestCase):
    settings = settings(max_examples=20, stateful_step_count=50, deadline=None)


@pytest.mark.nightly
class TestTenThousandSteps(Clients.TestCase):
    settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


def test_a_cancelled_row_is_free_before_the_next_piece_of_work():
    server = make_server(((1, 256),))
    first, second = request_of(max_tokens=50), request_of()
    server.submit(first)
    server.submit(second)
    for _ in range(3):
        server.end(server.begin())
    server.cancel(first)
    assert server.begin() == ReadChunk(second, 0, 8, 0)


def test_a_cancel_during_a_step_brings_no_token():
    server = make_server()
    first, second = request_of(), request_of()
    server.submit(first)
    server.submit(second)
    while len(server.scheduler.running) < 2:
        server.end(server.begin())
    work, number = server.begin(), len(first.tokens)
    assert isinstance(work, DecodeStep)
    server.cancel(first)
    server.end(work)
    assert (len(first.tokens), server.outcomes[first]) == (number, "cancelled")
    assert len(second.tokens) > 1


def test_a_stop_string_ends_an_answer_by_its_kind():
    server = make_server()
    request = request_of()
    server.submit(request)
    server.end(server.begin())
    (event,) = server.scheduler.cancel(request, 5.0, "stop")
    assert (event.kind, event.time, event.is_last) == ("stop", 5.0, True)
    assert server.scheduler.cancel(request, 6.0) == []
    assert server.scheduler.is_idle


def test_rows_get_no_second_chunk_between_two_steps():
    server = make_server(((8, 512),))
    for length in (1, 400, 400, 300, 10, 17):
        server.submit(request_of(length, 30))
    server.run()
    assert max(server.gaps()) == pytest.approx(0.145)
    assert server.works["ReadChunk"] == 1 + 25 + 25 + 19 + 1 + 2


@pytest.mark.parametrize("share", [0.25, 0.5, 0.65])
def test_reading_has_its_share_of_the_time_while_many_rows_decode(share):
    server = make_server(((2, 1024),), reading_share=share)
    server.submit(request_of(1, 900))
    long = request_of(1000, 4)
    server.submit(long)
    while long.num_read < 900:
        server.end(server.begin())
    reading, decoding = 0.1 * server.works["ReadChunk"], 0.045 * server.works["DecodeStep"]
    assert reading / (reading + decoding) == pytest.approx(share, abs=0.01)


def test_a_chunk_follows_each_step_while_few_rows_decode():
    server = make_server(((8, 512),), reading_share=0.1)
    server.submit(request_of(1, 100))
    server.submit(request_of(500, 4))
    server.run(until=4.0)
    assert server.works["DecodeStep"] == pytest.approx(server.works["ReadChunk"], abs=2)


def test_the_shortest_prompt_is_read_first_but_an_old_one_is_not_overtaken():
    server = make_server(((32, 512),))
    server.scheduler.pace.add_chunk(16, 0.1)
    long = request_of(400, 2)
    server.submit(long)
    server.end(server.begin())
    short = request_of(16, 2)
    server.submit(short)
    server.run(until=0.5)
    assert short in server.outcomes
    # Others keep coming, twice as many as the model can read.
    while long not in server.outcomes:
        server.submit(request_of(16, 2))
        server.run(until=server.now + 0.05)
        assert server.now < 60


def test_clients_share_the_rows_whatever_one_of_them_sends():
    server = make_server(((4, 512),))
    heavy = [request_of(100, 50, client="heavy") for _ in range(40)]
    for request in heavy:
        server.submit(request)
    server.run(until=3.0)
    light = request_of(100, 50, client="light")
    server.submit(light)
    server.run(until=server.now + 20.0)
    assert server.outcomes[light] == "length"
    assert sum(request in server.outcomes for request in heavy) < 20


def test_rows_that_are_free_at_once_are_shared_by_clients():
    server = make_server(((4, 256),))
    server.submit(request_of(100, client="light"))  # The model has worked for this one.
    server.run()
    first = [request_of(client="first") for _ in range(4)]
    for request in first:
        server.submit(request)
    for client in ("heavy", "light"):
        for _ in range(4):
            server.submit(request_of(10, 100, client=client))
    for request in first:
        server.cancel(request)
    server.run(until=server.now + 2.0)
    assert Counter(request.client for request in server.scheduler.running) == {
        "heavy": 2,
        "light": 2,
    }


@pytest.mark.parametrize(("length", "max_tokens"), [(100, 1), (8, 100)])
def test_the_client_for_which_the_model_has_worked_least_is_next(length, max_tokens):
    server = make_server(((1, 256),))
    busy = [request_of(length, max_tokens, client="busy"), request_of(8, 1, client="busy")]
    other = [request_of(8, 1, client="other") for _ in range(2)]
    for request in (*busy, *other):
        server.submit(request)
    server.run()
    assert list(server.outcomes) == [busy[0], *other, busy[1]]


def test_a_new_client_has_no_advantage_over_one_that_was_always_there():
    server = make_server(((1, 256),))
    for number in range(50):
        server.submit(request_of(client=f"gone {number}"))
        server.run()
    for _ in range(20):
        server.submit(request_of(client="old"))
    while len(server.outcomes) < 60:
        server.end(server.begin())
    for _ in range(10):
        server.submit(request_of(client="new"))
    server.run()
    assert Counter(request.client for request in list(server.outcomes)[61:67])["old"] == 3


def test_nobody_starves_behind_clients_that_are_new_each_time():
    server = make_server(((2, 128),), max_waiting=10_000)
    for _ in range(8):
        server.submit(request_of(100, 20, client="old"))
    last = request_of(100, 20, client="old")
    server.submit(last)
    number = 0
    while last not in server.outcomes:
        server.submit(request_of(16, 4, client=f"new {number}"))
        number += 1
        server.run(until=server.now + 0.2)  # More than the model can answer.
        assert server.now < 300


def test_a_higher_priority_is_read_first():
    server = make_server(((1, 256),))
    first, second, urgent = request_of(), request_of(), request_of(priority=1)
    for request in (first, second, urgent):
        server.submit(request)
    server.run()
    assert list(server.outcomes) == [first, urgent, second]
    server = make_server()
    short, urgent = request_of(), request_of(100, priority=1)
    for request in (short, urgent):
        server.submit(request)
    server.run()
    assert list(server.times) == [urgent, short]


def test_the_cache_grows_at_once_and_shrinks_after_a_pause():
    server = make_server(LADDER, shrink_seconds=2.0)
    scheduler = server.scheduler
    server.submit(request_of(8, 10))
    server.run(until=0.2)
    assert scheduler.shape == CacheShape(1, 64)
    server.submit(request_of(8, 4))
    server.run(until=0.5)
    assert scheduler.shape == CacheShape(4, 64)
    server.submit(request_of(8, 100))  # It grows in slots only when the answer is that long.
    server.run(until=2.0)
    assert scheduler.shape == CacheShape(4, 64)
    server.run()
    assert scheduler.shape == CacheShape(4, 256)
    assert scheduler.next_time() == pytest.approx(server.now + 2.0, abs=0.1)
    server.now = scheduler.next_time()
    work = server.begin()
    assert work == Resize(CacheShape(1, 64), (None,))
    server.end(work)
    assert scheduler.next_time() == math.inf
    server.check_answers()


def test_the_pause_begins_anew_when_the_rows_are_needed():
    server = make_server(((1, 256), (4, 256)), shrink_seconds=2.0)
    server.submit(request_of(8, 200))
    for start in (0.0, 1.5):
        server.run(until=start)
        server.submit(request_of(8, 2))
    server.run(until=3.5)
    assert server.scheduler.shape.rows == 4
    server.run(until=4.5)
    assert server.scheduler.shape.rows == 1


def test_a_resize_takes_the_turn_of_a_chunk():
    server = make_server(((1, 1024), (4, 1024)), shrink_seconds=0.5)
    server.submit(request_of(8, 200))
    server.submit(request_of(1000, 2))
    for time in (1.0, 3.0, 5.0):
        server.run(until=time)
        server.submit(request_of(8, 2))
    server.run()
    assert server.works["Resize"] >= 6
    assert max(server.gaps()) == pytest.approx(0.145)


def test_an_answer_of_a_call_with_a_lost_cache_fails_and_prompts_go_on():
    server = make_server()
    running, reading = request_of(max_tokens=9), request_of(100)
    server.submit(running)
    server.end(server.begin())
    server.submit(reading)
    server.end(server.begin())
    server.end(server.begin())
    error = RuntimeError("broken")
    assert isinstance(server.begin(), DecodeStep)
    (event,) = server.scheduler.failed(error, 1.0)
    assert (event.request, event.kind, event.error) == (running, "failed", error)
    assert not server.scheduler.running
    server.run()
    assert server.outcomes == {reading: "length"}


def test_a_failed_chunk_ends_its_own_request_alone():
    server = make_server()
    running, reading = request_of(max_tokens=9), request_of(100)
    server.submit(running)
    server.end(server.begin())
    server.submit(reading)
    server.end(server.begin())
    server.fail(server.begin(), is_cache_lost=False)
    assert server.outcomes == {reading: "failed"}
    server.run()
    assert server.outcomes[running] == "length"


def test_a_resize_that_always_fails_ends_requests_and_is_not_tried_for_ever():
    server = make_server(LADDER)
    server.submit(request_of(100))
    server.submit(request_of(8, 100))
    number = 0
    while work := server.begin():
        if isinstance(work, Resize):
            server.fail(work, is_cache_lost=True)
            number += 1
        else:
            server.end(work)
    assert 0 < number <= 2
    server.check_answers()


def test_work_is_reported_before_the_next():
    server = make_server()
    server.submit(request_of())
    server.begin()
    with pytest.raises(RuntimeError, match="was not reported"):
        server.scheduler.next_work(0.0)
    with pytest.raises(RuntimeError, match="DecodeStep was reported"):
        server.scheduler.decode_done([], 0.1, 0.1)


@pytest.mark.parametrize(
    ("length", "max_tokens", "field"),
    [
        (256, 1, "prompt"),
        (10**6, None, "prompt"),
        (200, 57, "max_tokens"),
        (8, 10**9, "max_tokens"),
    ],
)
def test_what_no_row_has_room_for_is_refused_with_the_field(length, max_tokens, field):
    server = make_server()
    with pytest.raises(InvalidFieldError, match="context length is 256") as caught:
        server.submit(request_of(length, max_tokens))
    assert caught.value.field == field
    assert server.scheduler.is_idle


def test_an_answer_without_a_limit_may_use_the_row():
    server = make_server(((2, 64),))
    request = request_of(8, None)
    server.submit(request)
    server.run()
    assert len(request.tokens) == 56


def test_one_client_leaves_room_for_others_to_wait():
    server = make_server(((1, 256),), max_waiting=8)
    server.submit(request_of())  # It reads at once.
    accepted = [server.submit(request_of(client="flood")) for _ in range(100)]
    assert accepted.count(True) == 4
    assert server.submit(request_of(client="other"))
    with pytest.raises(OverloadedError, match=r"5 requests are waiting, 4 of this client"):
        server.scheduler.submit([request_of(client="flood")], server.now)


def test_all_answers_to_a_prompt_are_accepted_or_none():
    server = make_server(((1, 256),), max_waiting=8)
    answers = TextRequest.choices(range(1, 9), SamplingOptions(n=5, max_tokens=3))
    with pytest.raises(InvalidFieldError, match="5 answers") as caught:
        server.scheduler.submit(answers, 0.0)
    assert caught.value.field == "n"
    assert server.submit(*answers[:4])
    others = TextRequest.choices([1], SamplingOptions(n=4, max_tokens=3), client="other")
    assert not server.submit(*others)  # Three wait, five may come, and one client leaves some.
    server.run()
    assert list(server.outcomes) == answers[:4]
    assert answers[0].prompt is answers[1].prompt


def test_a_request_that_would_be_late_is_refused_with_the_seconds_to_wait():
    server = make_server(((1, 256),))
    server.scheduler.pace.add_chunk(16, 0.1)
    server.scheduler.pace.add_step(256, 0.045)
    server.submit(request_of(max_tokens=200))
    with pytest.raises(OverloadedError, match="is needed in 5 s") as caught:
        server.scheduler.submit([request_of(deadline=5.0)], 0.0)
    assert caught.value.retry_after == pytest.approx(200 * 0.045, abs=1)
    assert server.submit(request_of(deadline=20.0))


def test_a_forecast_counts_the_turns_of_clients_and_not_all_that_wait():
    server = make_server(((1, 256),))
    server.scheduler.pace.add_chunk(16, 0.1)
    server.scheduler.pace.add_step(256, 0.045)
    for _ in range(11):
        server.submit(request_of(max_tokens=20, client="heavy"))
    request = 0.1 + 20 * 0.045
    for options, number in (
        ({"client": "light"}, 2),
        ({"client": "heavy"}, 11),
        ({"client": "heavy", "priority": 1}, 1),
    ):
        wait = server.scheduler.predict_first_token([request_of(**options)])
        assert wait == pytest.approx(number * request + 0.1)
    # Once "light" is there, it will also take its turns beside those of "heavy".
    server.submit(request_of(max_tokens=20, client="light"))
    wait = server.scheduler.predict_first_token([request_of(max_tokens=20, client="heavy")])
    assert wait > 19 * request


def test_an_idle_server_refuses_nothing_so_that_it_learns_new_times():
    server = make_server()
    server.scheduler.pace.add_chunk(16, 100.0)
    request = request_of(deadline=1.0)
    assert server.submit(request)
    server.run()
    assert server.outcomes == {request: "length"}


def test_a_request_without_a_first_token_by_its_deadline_ends():
    server = make_server(((1, 256),))
    server.submit(request_of(max_tokens=200))
    late = request_of(deadline=3.0)
    server.submit(late)  # No time is known yet, so it is accepted.
    assert server.scheduler.next_time() == 3.0
    server.run(until=4.0)
    assert server.outcomes == {late: "deadline"}


def test_forecasts_learn_which_share_of_their_tokens_answers_use():
    server = make_server(((1, 256),))
    for _ in range(20):
        server.submit(request_of(max_tokens=200, end_tokens=range(100)))  # It ends at once.
        server.run()
    server.scheduler.pace.add_step(256, 0.045)
    server.submit(request_of(max_tokens=200))
    wait = server.scheduler.predict_first_token([request_of()])
    assert wait == pytest.approx(0.2 + 0.045, abs=0.01)
    server.end(server.begin())
    wait = server.scheduler.predict_first_token([request_of()])
    assert wait == pytest.approx(0.1 + 0.045, abs=0.01)


@pytest.mark.parametrize(("max_tokens", "seconds"), [(200, 2.0), (10, 1.45)])
def test_a_forecast_reads_beside_the_answers_until_these_end(max_tokens, seconds):
    server = make_server(((2, 256),), reading_share=0.5)
    server.scheduler.pace.add_chunk(160, 0.1)
    server.scheduler.pace.add_step(512, 0.045)
    server.submit(request_of(1, max_tokens + 1))
    server.end(server.begin())
    assert server.scheduler.predict_first_token([request_of(160)]) == pytest.approx(seconds)


def test_the_largest_shape_has_the_most_rows_and_slots():
    with pytest.raises(InvalidInputError, match="the most rows and slots"):
        RowScheduler([(16, 512), (4, 8192)], 64)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_table_of_shares(capsys):
    rows = []
    for rate in (0.6, 0.9, 2.0):
        for share in (0.25, 0.5, 0.75):
            servers = [simulate(seed, rate=rate, share=share)[0] for seed in range(3)]
            for server in servers:
                server.check_answers()
                assert np.percentile(server.gaps(), 99) <= 0.145 + 1e-6
            tokens = [sum(map(len, server.times.values())) / server.now for server in servers]
            late = [Counter(server.outcomes.values())["deadline"] for server in servers]
            refused = [server.num_refused for server in servers]
            assert max(late) <= 8
            gap = max(np.percentile(server.gaps(), 99) for server in servers)
            rows.append(
                f"{rate} a second, share {share}: {np.mean(tokens):.0f} tokens/s, "
                f"{np.mean(refused):.0f} refused, {np.mean(late):.0f} late, p99 gap {gap:.3f} s"
            )
    with capsys.disabled():
        print("", *rows, sep="\n")
