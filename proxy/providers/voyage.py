"""Voyage AI: embeddings much like OpenAI's, and reranking. Pure; no I/O.

Source: docs.voyageai.com/reference. Vectors are floats where no encoding is named, and "float" is no name of one.
"""

from typing import Any

import msgspec

from proxy.dialects.dialect import Call
from proxy.neutral import Embedding
from proxy.providers.openai_embeddings import OpenAIEmbeddings, texts_of
from proxy.providers.provider import Outgoing, Provider
from proxy.providers.rerank import Rerank
from proxy.snapshot import Deployment
from proxy.snapshot import Provider as ProviderEntry
from proxy.wire.json_gate import dump_object

_RENAMES = {"dimensions": "output_dimension"}
_TASKS = frozenset({"query", "document"})

_encode = msgspec.json.Encoder().encode


class VoyageEmbeddings(OpenAIEmbeddings):
    def pass_request(self, call: Call, deployment: Deployment, provider: ProviderEntry) -> Outgoing:
        fields = {_RENAMES.get(name, name): value for name, value in call.fields.items()}
        fields["model"] = msgspec.Raw(_encode(deployment.upstream_model))
        if bytes(fields.get("encoding_format", b"")) == b'"float"':
            del fields["encoding_format"]
        return Outgoing(self.target, dump_object(fields))

    def write_request(
        self, prompt: Embedding, call: Call, deployment: Deployment, provider: ProviderEntry, lost: list[str]
    ) -> Outgoing:
        """Too long an input is an error and not cut, as with everybody else."""
        for name in ("title", "user"):
            if getattr(prompt, name):
                lost.append(prompt.names.get(name, name))
        if prompt.task and prompt.task not in _TASKS:
            lost.append(prompt.names.get("task", "task"))
        body: dict[str, Any] = {
            "model": deployment.upstream_model,
            "input": texts_of(prompt, lost),
            "truncation": False,
        }
        if prompt.task in _TASKS:
            body["input_type"] = prompt.task
        if prompt.dimensions is not None:
            body["output_dimension"] = prompt.dimensions
        return Outgoing(self.target, _encode(body))


class VoyageRerank(Rerank):
    """Always translated: its words for the number and the list of results are its own."""

    name = "voyage.rerank"
    top_field = "top_k"


PROVIDER = Provider(name="voyage", apis=(VoyageEmbeddings(), VoyageRerank()))
