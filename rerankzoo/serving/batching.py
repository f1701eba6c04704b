"""Dynamic batching: a batch is what has arrived while the last one was computed. Nobody waits for others to come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from rerankzoo.serving.calls import RerankCall

T = TypeVar("T")


class Batcher(Generic[T]):
    """Answers calls in batches, in a thread of its own, one batch after the other.

    Args:
        answer: Answers calls of one `key` together.
        max_batch: Requests of a batch; a call with more is a batch of its own.
    """

    def __init__(self, answer: Callable[[Sequence[RerankCall]], list[T]], max_batch: int) -> None:
        self.answer, self.max_batch = answer, max_batch
        self._waiting: deque[tuple[RerankCall, asyncio.Future[T]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "rerankzoo")

    async def __call__(self, call: RerankCall, timeout: float) -> T:
        """Answers a call; an `asyncio.TimeoutError` after so many seconds."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        self._arrived.set()
        return await asyncio.wait_for(future, timeout)

    async def run(self) -> None:
        """Answers whatever arrives, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._next()
            if not self._waiting:
                self._arrived.clear()
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(self._thread, self.answer, [call for call, _ in batch])
            except Exception as error:  # these calls fail, later ones do not
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    def _next(self) -> list[tuple[RerankCall, asyncio.Future[T]]]:
        """The first call that still waits, and those after it that can be answered with it."""
        batch: list[tuple[RerankCall, asyncio.Future[T]]] = []
        others: list[tuple[RerankCall, asyncio.Future[T]]] = []
        size = 0
        while self._waiting and size < self.max_batch:
            call, future = self._waiting.popleft()
            if future.done():  # nobody waits for it any more
                continue
            fits = not batch or (call.key == batch[0][0].key and size + len(call.requests) <= self.max_batch)
            (batch if fits else others).append((call, future))
            size += len(call.requests) if fits else 0
        self._waiting.extendleft(reversed(others))
        return batch
