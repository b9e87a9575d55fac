"""The official Mistral SDK through Tollgate: only server and key are different.

    TOLLGATE_KEY=tg-… python examples/mistral/chat.py

Needs `pip install mistralai`. `make run` prints the key.
"""

import os

from mistralai.client import Mistral, errors
from pydantic import BaseModel

url = os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080")
client = Mistral(server_url=url, api_key=os.environ["TOLLGATE_KEY"])
model = os.environ.get("TOLLGATE_MODEL", "demo")
question = [{"role": "user", "content": "What is a tollgate?"}]

print("Models:", [model.id for model in client.models.list().data])

# A whole answer.
answer = client.chat.complete(model=model, messages=question, max_tokens=50)
print("Answer:", answer.choices[0].message.content)
print("Usage:", answer.usage.prompt_tokens, "in,", answer.usage.completion_tokens, "out")

# A stream.
print("Stream: ", end="")
for event in client.chat.stream(model=model, messages=question, max_tokens=50):
    for choice in event.data.choices:
        print(choice.delta.content or "", end="", flush=True)
    # Mistral's own models tell it with the last words, others do not.
    if usage := event.data.usage:
        print("\nUsage:", usage.prompt_tokens, "in,", usage.completion_tokens, "out", end="")
print()

# A tool: the model asks for it, we answer, it goes on. (What is in brackets is for the simulator of the demo.)
weather = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
messages = [
    {"role": "user", "content": 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]'},
]
asking = client.chat.complete(model=model, messages=messages, tools=[weather]).choices[0].message
messages.append(asking)
for call in asking.tool_calls or []:
    print("Tool:", call.function.name, call.function.arguments)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "4 degrees, rain"})
told = client.chat.complete(model=model, messages=messages, tools=[weather])
print("Told:", told.choices[0].message.content)


# An answer of a given form.
class Toll(BaseModel):
    road: str
    euros: float


formed = client.chat.parse(Toll, model=model, messages=question)
print("Schema:", formed.choices[0].message.parsed)

# An image to look at.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
parts = [
    {"type": "text", "text": "What is to be seen?"},
    {"type": "image_url", "image_url": f"data:image/png;base64,{PIXEL}"},
]
seen = client.chat.complete(model=model, messages=[{"role": "user", "content": parts}])
print("Image:", seen.choices[0].message.content)

# Vectors, from a model that makes some.
if embedder := os.environ.get("TOLLGATE_EMBEDDING_MODEL"):
    vectors = client.embeddings.create(model=embedder, inputs=["a road", "a gate"])
    print("Vectors:", [len(entry.embedding) for entry in vectors.data])


# A wrong key, an unknown model, a budget that is used up: ordinary errors of the SDK.
def refuse(why: str, client: Mistral, model: str) -> None:
    try:
        client.chat.complete(model=model, messages=question)
    except errors.SDKError as error:
        print(f"{why}: {error.status_code} {error.body}")


refuse("Wrong key", Mistral(server_url=url, api_key="tg-wrong"), model)
refuse("Unknown model", client, "a-model-nobody-registered")
if "TOLLGATE_SPENT_KEY" in os.environ:
    refuse("Budget used up", Mistral(server_url=url, api_key=os.environ["TOLLGATE_SPENT_KEY"]), model)
