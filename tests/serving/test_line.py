"""Who is answered when, and what becomes of a turn whose owner has left."""

from __future__ import annotations

import asyncio

import pytest

from appliance.serving.line import Closing, Full, Line, TooLong


def test_turns_come_in_order_and_only_so_many_wait() -> None:
    async def story() -> None:
        line, came = Line(most_waiting=2), list[str]()

        async def one(name: str) -> None:
            await line.turn(60)
            came.append(name)

        await one("first")
        waiting = [asyncio.create_task(one(name)) for name in ("second", "third")]
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await line.turn(60)
        for number in (2, 3):
            line.give_back()
            await asyncio.sleep(0.01)
            assert len(came) == number
        await asyncio.gather(*waiting)
        assert came == ["first", "second", "third"]
        assert line.is_taken
        line.give_back()
        assert not line.is_taken

    asyncio.run(story())


def test_a_turn_that_comes_too_late_or_to_nobody_is_the_next_ones() -> None:
    async def story() -> None:
        line = Line(most_waiting=9)
        await line.turn(60)
        with pytest.raises(TooLong):
            await line.turn(0.01)
        leaving, staying = (asyncio.create_task(line.turn(60)) for _ in range(2))
        await asyncio.sleep(0)
        line.give_back()  # the turn of the one who leaves before noticing
        leaving.cancel()
        await asyncio.wait_for(staying, 5)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gone = asyncio.create_task(line.turn(60))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        assert line.waiting == 0
        line.give_back()
        assert not line.is_taken

    asyncio.run(story())


def test_when_it_closes_who_waits_leaves_and_nobody_comes() -> None:
    async def story() -> None:
        line = Line(most_waiting=9)
        await line.turn(60)
        waiting = asyncio.create_task(line.turn(60))
        await asyncio.sleep(0)
        line.close()
        for coming in (waiting, line.turn(60)):
            with pytest.raises(Closing):
                await coming
        assert line.is_taken  # who is being answered goes on

    asyncio.run(story())
