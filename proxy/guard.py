"""The guard stage: what may be asked. Everything passes for now; detectors of personal data and secrets will stand here."""

from proxy.describe import Described


def guard(described: Described) -> Described:
    return described
