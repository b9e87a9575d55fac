"""The official Anthropic SDK through Tollgate: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/anthropic/messages.py

Needs `pip install anthropic`. `make run` prints the key.
"""

import os

import anthropic

client = anthropic.Anthropic(
    base_url=os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080"),
    api_key=os.environ["TOLLGATE_KEY"],
    default_headers={"x-tollgate-tags": "feature=examples"},
)
model = os.environ.get("TOLLGATE_MODEL", "demo")
question = [{"role": "user", "content": "What is a tollgate?"}]

print("Models:", [model.id for model in client.models.list()])

# A whole answer.
answer = client.messages.create(model=model, max_tokens=50, system="Be brief.", messages=question)
print("Answer:", answer.content[0].text)
print("Usage:", answer.usage.input_tokens, "in,", answer.usage.output_tokens, "out")

# A stream.
print("Stream: ", end="")
with client.messages.stream(model=model, max_tokens=50, messages=question) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
    streamed = stream.get_final_message()
print("\nUsage:", streamed.usage.input_tokens, "in,", streamed.usage.output_tokens, "out")

# A tool, streamed: the model asks for it, we answer, it goes on. (What is in brackets is for the simulator of the demo.)
weather = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
messages = [
    {"role": "user", "content": 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]'},
]
with client.messages.stream(model=model, max_tokens=50, messages=messages, tools=[weather]) as stream:
    asking = stream.get_final_message()
results = []
for block in asking.content:
    if block.type == "tool_use":
        print("Tool:", block.name, block.input)
        results.append({"type": "tool_result", "tool_use_id": block.id, "content": "4 degrees, rain"})
messages += [{"role": "assistant", "content": asking.content}, {"role": "user", "content": results}]
told = client.messages.create(model=model, max_tokens=50, messages=messages, tools=[weather])
print("Told:", told.content[0].text)

# An answer of a given form.
toll = {
    "type": "object",
    "properties": {"road": {"type": "string"}, "euros": {"type": "number"}},
    "required": ["road", "euros"],
    "additionalProperties": False,
}
formed = client.messages.create(
    model=model,
    max_tokens=50,
    messages=question,
    output_config={"format": {"type": "json_schema", "schema": toll}},
)
print("Schema:", formed.content[0].text)

# An image to look at.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
parts = [
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
    {"type": "text", "text": "What is to be seen?"},
]
seen = client.messages.create(model=model, max_tokens=50, messages=[{"role": "user", "content": parts}])
print("Image:", seen.content[0].text)

# How many tokens a question has: of Anthropic's own models only.
if "TOLLGATE_COUNTS" in os.environ:
    print("Count:", client.messages.count_tokens(model=model, messages=question).input_tokens)

# A wrong key, an unknown model, a budget that is used up: ordinary errors of the SDK.
try:
    client.with_options(api_key="tg-wrong").messages.create(model=model, max_tokens=50, messages=question)
except anthropic.AuthenticationError as error:
    print("Wrong key:", error.status_code, error.body["error"]["message"])
try:
    client.messages.create(model="a-model-nobody-registered", max_tokens=50, messages=question)
except anthropic.NotFoundError as error:
    print("Unknown model:", error.status_code, error.body["error"]["message"])
if "TOLLGATE_SPENT_KEY" in os.environ:
    spent = client.with_options(api_key=os.environ["TOLLGATE_SPENT_KEY"])
    try:
        spent.messages.create(model=model, max_tokens=50, messages=question)
    except anthropic.RateLimitError as error:
        print("Budget used up:", error.status_code, error.body["error"]["message"])
