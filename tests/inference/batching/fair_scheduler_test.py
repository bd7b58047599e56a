import threading

import pytest

from keras_deepseek.inference.batching.fair_scheduler import NUM_KEPT, FairOrder, FairScheduler


class Models:
    """Models that ask for turns by threads, and a clock that is moved by hand."""

    def __init__(self, limit):
        self.now = 0.0
        self.scheduler = FairScheduler(limit, clock=lambda: self.now)
        self.began = []
        self.threads = []

    def ask(self, model, seconds):
        """Asks for a turn of some seconds, and returns when it has asked."""
        is_waiting, ask = threading.Event(), self.scheduler._ask

        def ask_and_tell(name):
            ask(name)
            is_waiting.set()

        self.scheduler._ask = ask_and_tell
        thread = threading.Thread(target=self._run, args=(model, seconds))
        self.threads.append(thread)
        thread.start()
        assert is_waiting.wait(60)
        self.scheduler._ask = ask

    def _run(self, model, seconds):
        with self.scheduler.take(model):
            self.began.append(model)
            self.now += seconds

    def join(self):
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def models():
    return Models(limit=1)


def test_the_least_served_model_is_next(models):
    with models.scheduler.take("first"):
        for model in ("slow", "quick", "slow", "quick", "quick"):
            models.ask(model, 4.0 if model == "slow" else 1.0)
    models.join()
    assert models.began == ["slow", "quick", "quick", "quick", "slow"]


def test_one_that_slept_is_not_owed_what_it_missed(models):
    for _ in range(5):
        models.ask("busy", 10.0)
        models.join()
    with models.scheduler.take("busy"):
        models.now += 10.0
        models.ask("sleeper", 1.0)
        assert models.scheduler._order.seconds["sleeper"] == models.scheduler._order.seconds["busy"]
    models.join()


def test_so_many_run_at_the_same_time():
    scheduler, both = FairScheduler(2), threading.Barrier(2)

    def run(model):
        with scheduler.take(model):
            both.wait(60)

    threads = [threading.Thread(target=run, args=(model,)) for model in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_a_batch_that_fails_gives_its_turn_back(models):
    with pytest.raises(ArithmeticError), models.scheduler.take("a"):
        raise ArithmeticError
    with models.scheduler.take("a"):
        pass


def test_a_newcomer_begins_at_the_share_of_those_that_were_always_there():
    order = FairOrder()
    for name in ("modest", "busy"):
        order.join(name)
    order.charge("busy", 10.0)  # "modest" has had nothing to do, and keeps that advantage.
    order.join("newcomer")
    assert order.seconds == {"modest": 0.0, "busy": 10.0, "newcomer": 5.0}


def test_idle_names_are_forgotten_except_those_that_had_the_most():
    order = FairOrder()
    order.join("always")
    for number in range(5 * NUM_KEPT):
        order.join(f"once {number}")
        order.charge(f"once {number}", 1e6 if number == 7 else 1.0)
        order.leave(f"once {number}")
    assert len(order.seconds) <= NUM_KEPT + 2
    assert "always" in order.seconds
    order.join("once 7")
    assert order.seconds["once 7"] > order.level
