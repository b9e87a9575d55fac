"""The official Cohere SDK through Tollgate: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/cohere/chat.py

Needs `pip install cohere`. `make run` prints the key.
"""

import os

import cohere

url = os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080")
client = cohere.ClientV2(base_url=url, api_key=os.environ["TOLLGATE_KEY"])
model = os.environ.get("TOLLGATE_MODEL", "demo")
question = [{"role": "user", "content": "What is a tollgate?"}]

# A whole answer.
answer = client.chat(model=model, messages=question, max_tokens=50)
print("Answer:", answer.message.content[0].text)
print("Usage:", int(answer.usage.billed_units.input_tokens), "in,", int(answer.usage.billed_units.output_tokens), "out")

# A stream.
print("Stream: ", end="")
for event in client.chat_stream(model=model, messages=question, max_tokens=50):
    if event.type == "content-delta":
        print(event.delta.message.content.text, end="", flush=True)
    elif event.type == "message-end":
        usage = event.delta.usage.billed_units
print("\nUsage:", int(usage.input_tokens), "in,", int(usage.output_tokens), "out")

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
asking = client.chat(model=model, messages=messages, tools=[weather]).message
messages.append(asking)
for call in asking.tool_calls or []:
    print("Tool:", call.function.name, call.function.arguments)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "4 degrees, rain"})
told = client.chat(model=model, messages=messages, tools=[weather])
print("Told:", told.message.content[0].text)

# An answer of a given form.
toll = {
    "type": "object",
    "properties": {"road": {"type": "string"}, "euros": {"type": "number"}},
    "required": ["road", "euros"],
}
formed = client.chat(model=model, messages=question, response_format={"type": "json_object", "json_schema": toll})
print("Schema:", formed.message.content[0].text)

# An image to look at.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
parts = [
    {"type": "text", "text": "What is to be seen?"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
]
print("Image:", client.chat(model=model, messages=[{"role": "user", "content": parts}]).message.content[0].text)

# Vectors, and texts in order of how well they answer, from models that can.
texts = ["a road", "a gate"]
if embedder := os.environ.get("TOLLGATE_EMBEDDING_MODEL"):
    embedded = client.embed(model=embedder, texts=texts, input_type="search_document", embedding_types=["float"])
    print("Vectors:", [len(vector) for vector in embedded.embeddings.float_])
if reranker := os.environ.get("TOLLGATE_RERANK_MODEL"):
    ranked = client.rerank(model=reranker, query="What is a tollgate?", documents=texts)
    print("Ranked:", sorted(texts[result.index] for result in ranked.results))

# A wrong key, an unknown model, a budget that is used up: ordinary errors of the SDK.
try:
    cohere.ClientV2(base_url=url, api_key="tg-wrong").chat(model=model, messages=question)
except cohere.UnauthorizedError as error:
    print("Wrong key:", error.status_code, error.body)
try:
    client.chat(model="a-model-nobody-registered", messages=question)
except cohere.NotFoundError as error:
    print("Unknown model:", error.status_code, error.body)
if "TOLLGATE_SPENT_KEY" in os.environ:
    spent = cohere.ClientV2(base_url=url, api_key=os.environ["TOLLGATE_SPENT_KEY"])
    try:
        # It would try again else, and be told the same.
        spent.chat(model=model, messages=question, request_options={"max_retries": 0})
    except cohere.TooManyRequestsError as error:
        print("Budget used up:", error.status_code, error.body)
