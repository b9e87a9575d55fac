"""Retries in bounds: a deployment that keeps failing is no longer what a request falls back on, but now and then. Pure.

Each worker judges by what it has seen itself. A deployment's standing falls with each failure and rises with each answer, as
gRPC throttles retries (proposal A6): while it is good, everybody may fall back on it, so an outage of one provider costs no
request anything. When it is not, a tenth of the requests still may, which finds out when it is back.
"""

STANDING_MAX = 10.0
GOOD_STANDING = STANDING_MAX / 2
# Retries on what fails, for each request. Two tenths are the promise; an outage that has only begun takes some as well.
SHARE = 0.1
SAVED_MAX = 10.0


class Retries:
    def __init__(self) -> None:
        # By deployment; those that never failed are not in it.
        self._standing: dict[str, float] = {}
        self._saved = SAVED_MAX

    def begin(self) -> None:
        """A request that is tried for the first time."""
        self._saved = min(self._saved + SHARE, SAVED_MAX)

    def may_try(self, deployment_id: str) -> bool:
        """Whether a request that another deployment has failed may be tried on this one."""
        if self._standing.get(deployment_id, STANDING_MAX) > GOOD_STANDING:
            return True
        if self._saved < 1:
            return False
        self._saved -= 1
        return True

    def failed(self, deployment_id: str) -> None:
        self._standing[deployment_id] = max(self._standing.get(deployment_id, STANDING_MAX) - 1, 0.0)

    def answered(self, deployment_id: str) -> None:
        if deployment_id in self._standing:
            self._standing[deployment_id] = min(self._standing[deployment_id] + 1, STANDING_MAX)
