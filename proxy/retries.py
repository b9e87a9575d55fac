"""Retries in bounds: a deployment that fails is not fallen back on by everybody, but now and then. One event loop.

Each worker judges by what it has seen itself. A deployment's standing falls with each failure and rises with each answer, as
gRPC throttles retries (proposal A6). On one that has answered and is in good standing everybody may fall back. On another those may
that are saved up for: one, and one for every ten requests. While they find out about one that nobody knows yet, the others wait. So an
outage of one provider costs no request anything, and an outage of all is not answered by a storm.
"""

import asyncio
from collections import defaultdict
from typing import Any

STANDING_MAX = 10.0
GOOD_STANDING = STANDING_MAX / 2
# For so many requests there may be one retry on what is not known to be good. The promise is one for five.
REQUESTS_PER_RETRY = 10
RETRIES_SAVED_MAX = 10
# What has not failed by then is not away: it takes its time to answer.
TRIAL_WAIT_S = 1.0


class Retries:
    def __init__(self) -> None:
        # By deployment; those that neither failed nor answered are not in it.
        self._standing: dict[str, float] = {}
        self._has_answered: set[str] = set()
        # In requests.
        self._saved = REQUESTS_PER_RETRY
        # By deployment, the requests that find out, and what those wait for that want to know.
        self._trials: defaultdict[str, set[asyncio.Task[Any] | None]] = defaultdict(set)
        self._news: dict[str, asyncio.Future[None]] = {}

    def begin(self) -> None:
        """A request that is tried for the first time."""
        self._saved = min(self._saved + 1, RETRIES_SAVED_MAX * REQUESTS_PER_RETRY)

    async def may_try(self, deployment_id: str) -> bool:
        """Whether a request that another deployment has failed may be tried on this one."""
        until_s = asyncio.get_running_loop().time() + TRIAL_WAIT_S
        while not self._is_good(deployment_id):
            if self._saved >= REQUESTS_PER_RETRY:
                self._saved -= REQUESTS_PER_RETRY
                self._begin_trial(deployment_id)
                return True
            left_s = until_s - asyncio.get_running_loop().time()
            trials = self._trials[deployment_id]
            if not trials or self._standing.get(deployment_id, STANDING_MAX) <= GOOD_STANDING:
                return False
            if left_s <= 0:
                return True
            if deployment_id not in self._news:
                self._news[deployment_id] = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._news[deployment_id]], timeout=left_s)
        return True

    def failed(self, deployment_id: str) -> None:
        self._standing[deployment_id] = max(self._standing.get(deployment_id, STANDING_MAX) - 1, 0.0)
        self._end_trial(deployment_id, asyncio.current_task())

    def answered(self, deployment_id: str) -> None:
        standing = self._standing.get(deployment_id)
        if standing != STANDING_MAX:
            self._standing[deployment_id] = STANDING_MAX if standing is None else standing + 1
            self._has_answered.add(deployment_id)
            self._end_trial(deployment_id, asyncio.current_task())

    def _is_good(self, deployment_id: str) -> bool:
        return deployment_id in self._has_answered and self._standing[deployment_id] > GOOD_STANDING

    def _begin_trial(self, deployment_id: str) -> None:
        """It is over when its request says how it went, at the latest when that is over."""
        task = asyncio.current_task()
        assert task is not None, "requests run in tasks"
        self._trials[deployment_id].add(task)
        task.add_done_callback(lambda task: self._end_trial(deployment_id, task))

    def _end_trial(self, deployment_id: str, task: "asyncio.Task[Any] | None") -> None:
        self._trials[deployment_id].discard(task)
        if news := self._news.pop(deployment_id, None):
            news.set_result(None)
