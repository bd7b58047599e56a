import asyncio

from keras_deepseek.inference.grpc.calls_in_flight import CallsInFlight


def test_the_end_comes_when_the_last_call_is_answered():
    async def run():
        calls, order = CallsInFlight(), []

        async def answer(name, gate):
            with calls:
                await gate.wait()
                order.append(name)

        gates = [asyncio.Event(), asyncio.Event()]
        tasks = [asyncio.create_task(answer(n, gate)) for n, gate in enumerate(gates)]
        await asyncio.sleep(0)
        ending = asyncio.create_task(calls.wait_for_none(60))
        for gate in gates:
            await asyncio.sleep(0)
            assert not ending.done()
            gate.set()
        await ending
        assert order == [0, 1]
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_with_no_call_the_end_is_there_also_after_earlier_ones():
    async def run():
        calls = CallsInFlight()
        await calls.wait_for_none(60)
        with calls:
            pass
        with calls:
            ending = asyncio.create_task(calls.wait_for_none(60))
            await asyncio.sleep(0)
            assert not ending.done()
        await ending

    asyncio.run(run())


def test_a_call_that_never_ends_is_waited_for_no_longer_than_that():
    async def run():
        calls = CallsInFlight()
        with calls:
            await calls.wait_for_none(0.01)

    asyncio.run(run())
