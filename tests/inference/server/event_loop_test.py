import asyncio
import sys
import types

from keras_deepseek.inference.server.event_loop import call_in, loop_factory


def test_the_loop_is_uvloop_s_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None
    uvloop = types.SimpleNamespace(new_event_loop=object())
    monkeypatch.setitem(sys.modules, "uvloop", uvloop)
    assert loop_factory() is uvloop.new_event_loop


def test_a_function_is_called_in_the_loop_and_in_none_that_is_closed():
    called = []
    loop = asyncio.new_event_loop()
    call_in(loop, lambda: (called.append(1), loop.stop()))
    loop.run_forever()
    loop.close()
    call_in(loop, lambda: called.append(2))
    assert called == [1]
