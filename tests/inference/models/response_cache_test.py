import threading

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import ModelOptions, ServingEngine
from keras_deepseek.inference.models.response_cache import ResponseCache


def outputs(value, rows=1):
    return {"y": np.full((rows, 2), value, "float32")}


def counts(engine, name):
    pytest.importorskip("prometheus_client")
    from keras_deepseek.inference.server.metrics import EngineCollector

    families = {family.name: family for family in EngineCollector(engine).collect()}
    samples = families[f"keras_deepseek_{name}"].samples
    return {sample.labels["version"]: sample.value for sample in samples}


def test_inputs_differ_by_name_dtype_shape_and_bytes():
    key = ResponseCache(1).key
    x = np.arange(6, dtype="float32").reshape(2, 3)
    assert key({"x": x}) == key({"x": np.asfortranarray(x)})
    other_inputs = [
        {"z": x},
        {"x": x.reshape(3, 2)},
        {"x": x.astype("float64")},
        {"x": x + 1},
        {"x": x[:0]},
        {"x": x, "z": x},
    ]
    assert len({key(inputs) for inputs in [{"x": x}, *other_inputs]}) == 1 + len(other_inputs)


def test_strings_are_told_apart_by_where_they_end():
    key = ResponseCache(1).key
    values = [
        [b"ab", b"c"],
        [b"a", b"bc"],
        [b"abc", b""],
        ["ab", "c"],
        [b"1:a", b""],
        [b"", b"1:a"],
    ]
    arrays = [np.array(value, object) for value in values]
    assert len({key({"x": array}) for array in arrays}) == len(values)


def test_what_was_asked_for_longest_ago_is_dropped():
    cache = ResponseCache(2)
    for name in (b"a", b"b"):
        cache.put(name, outputs(1))
    assert cache.get(b"a") is not None
    cache.put(b"c", outputs(1))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert cache.counts() == (2, 1, 2)


def test_no_more_bytes_are_kept_than_allowed():
    cache = ResponseCache(100, max_bytes=40)
    cache.put(b"large", outputs(1, rows=6))
    assert cache.get(b"large") is None
    for name in (b"a", b"a", b"b", b"c", b"d", b"e", b"f"):
        cache.put(name, outputs(1))
    assert cache.counts()[2] == 5
    assert cache.get(b"a") is None
    text = {"y": np.array([b"x" * 100], object)}
    cache.put(b"text", text)
    assert cache.get(b"text") is None


def test_what_is_given_out_may_be_changed():
    cache = ResponseCache(1)
    answer = outputs(1)
    cache.put(b"a", answer)
    answer["y"][:] = 2
    cache.get(b"a")["y"][:] = 3
    assert (cache.get(b"a")["y"] == 1).all()


def test_an_input_that_comes_again_does_not_run(doubler, rows):
    with ServingEngine(doubler, cache_entries=8, warm_up=False) as engine:
        first = engine.predict(rows(1, 2))
        assert (engine.predict(rows(1, 2)) == first).all()
        engine.predict(rows(3))
        assert doubler.rows_seen == [1, 2, 3]
        assert counts(engine, "cache_hits") == {"1": 1}
        assert counts(engine, "cache_misses") == {"1": 2}
        assert counts(engine, "cache_entries") == {"1": 2}


def test_an_awaited_answer_may_come_from_the_cache(doubler, rows):
    import asyncio

    async def ask_twice(engine):
        return [await engine.predict_async(rows(1)) for _ in range(2)]

    with ServingEngine(doubler, cache_entries=8, warm_up=False) as engine:
        first, second = asyncio.run(ask_twice(engine))
        assert (first == second).all()
        assert doubler.sizes == [1]


def test_errors_are_not_kept(doubler, rows):
    with ServingEngine(doubler, cache_entries=8, warm_up=False) as engine:
        for _ in range(2):
            with pytest.raises(ArithmeticError):
                engine.predict(rows(-1))
        assert counts(engine, "cache_entries") == {"1": 0}


def test_another_version_does_not_answer_with_what_the_last_one_said(doubler, rows):
    class Negation:
        signature = doubler.signature

        def run(self, inputs):
            return {"y": -inputs["x"]}

    with ServingEngine(doubler, cache_entries=8) as engine:
        assert engine.predict(rows(1))[0, 0] == 2
        engine.load(Negation(), version=1)
        assert engine.predict(rows(1))[0, 0] == -1


def test_while_a_version_is_on_trial_only_named_versions_answer_from_the_cache(doubler, rows):
    with ServingEngine(doubler, cache_entries=8) as engine:
        engine.load(doubler, share=0.5)
        for _ in range(8):
            engine.predict(rows(1))
        assert counts(engine, "cache_hits") == {"1": 0, "2": 0}
        for _ in range(2):
            engine.predict(rows(1), version=2)
        assert counts(engine, "cache_hits") == {"1": 0, "2": 1}


def test_the_order_of_a_client_is_kept(doubler, rows):
    with ServingEngine(doubler, cache_entries=8) as engine:
        for _ in range(2):
            engine.predict(rows(1), client="anna")
        assert counts(engine, "cache_hits") == {"1": 0}


def test_threads_share_a_cache():
    cache = ResponseCache(3)

    def work(start):
        for number in range(2000):
            key = b"%d" % ((start + number) % 7)
            answer = cache.get(key)
            assert answer is None or answer["y"][0, 0] == int(key)
            cache.put(key, outputs(int(key)))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hits, misses, entries = cache.counts()
    assert (hits + misses, entries) == (8000, 3)


@pytest.mark.parametrize("entries", [-1, 1.5, True])
def test_a_number_of_entries_that_is_none_is_refused(entries):
    with pytest.raises(InvalidInputError, match="cache_entries"):
        ModelOptions(cache_entries=entries)
