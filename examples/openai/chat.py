"""The official OpenAI SDK through Tollgate: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/openai/chat.py

Needs `pip install openai`. `make run` prints the key.
"""

import os

import openai
from pydantic import BaseModel

client = openai.OpenAI(
    base_url=os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ["TOLLGATE_KEY"],
    # What this application is, for whoever asks where the money went.
    default_headers={"x-tollgate-tags": "feature=examples"},
)
model = os.environ.get("TOLLGATE_MODEL", "demo")
question = [{"role": "user", "content": "What is a tollgate?"}]

print("Models:", [model.id for model in client.models.list()])

# A whole answer, and what it cost.
answer = client.chat.completions.with_raw_response.create(model=model, messages=question, max_tokens=50)
print("Answer:", answer.parse().choices[0].message.content)
print("Cost: $" + answer.headers["x-tollgate-cost-usd"], "by", answer.headers["x-tollgate-deployment"])

# A stream, with its usage at the end.
stream = client.chat.completions.create(
    model=model, messages=question, max_tokens=50, stream=True, stream_options={"include_usage": True}
)
print("Stream: ", end="")
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print("\nUsage:", chunk.usage.prompt_tokens, "in,", chunk.usage.completion_tokens, "out")

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
asking = client.chat.completions.create(model=model, messages=messages, tools=[weather]).choices[0].message
messages.append(asking.model_dump(exclude_none=True))
for call in asking.tool_calls or []:
    print("Tool:", call.function.name, call.function.arguments)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "4 degrees, rain"})
told = client.chat.completions.create(model=model, messages=messages, tools=[weather])
print("Told:", told.choices[0].message.content)


# An answer of a given form.
class Toll(BaseModel):
    road: str
    euros: float


parsed = client.chat.completions.parse(model=model, messages=question, response_format=Toll)
print("Schema:", parsed.choices[0].message.parsed)

# An image to look at.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
parts = [
    {"type": "text", "text": "What is to be seen?"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
]
seen = client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}])
print("Image:", seen.choices[0].message.content)

# A wrong key, an unknown model, a budget that is used up: ordinary errors of the SDK, with a code that says which.
try:
    client.with_options(api_key="tg-wrong").chat.completions.create(model=model, messages=question)
except openai.AuthenticationError as error:
    print("Wrong key:", error.status_code, error.code, error.body["message"])
try:
    client.chat.completions.create(model="a-model-nobody-registered", messages=question)
except openai.NotFoundError as error:
    print("Unknown model:", error.status_code, error.code, error.body["message"])
if "TOLLGATE_SPENT_KEY" in os.environ:
    try:
        client.with_options(api_key=os.environ["TOLLGATE_SPENT_KEY"]).chat.completions.create(
            model=model, messages=question
        )
    except openai.RateLimitError as error:
        print("Budget used up:", error.status_code, error.code, error.body["message"])
