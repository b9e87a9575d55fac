"""The Responses API with the official OpenAI SDK through Tollgate: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/openai/responses.py

Needs `pip install openai`. `make run` prints the key.
"""

import os

import openai
from pydantic import BaseModel

client = openai.OpenAI(
    base_url=os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ["TOLLGATE_KEY"],
)
model = os.environ.get("TOLLGATE_MODEL", "demo")
question = "What is a tollgate?"

# A whole answer. What is not to be kept at the provider can be answered by any of them.
answer = client.responses.create(model=model, instructions="Be brief.", input=question, store=False)
print("Answer:", answer.output_text)
print("Usage:", answer.usage.input_tokens, "in,", answer.usage.output_tokens, "out")

# A stream.
print("Stream: ", end="")
with client.responses.stream(model=model, input=question, store=False) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
    usage = stream.get_final_response().usage
print("\nUsage:", usage.input_tokens, "in,", usage.output_tokens, "out")

# A tool: the model asks for it, we answer, it goes on. (What is in brackets is for the simulator of the demo.)
weather = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
items = [
    {"role": "user", "content": 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]'},
]
asking = client.responses.create(model=model, input=items, tools=[weather], store=False)
items += asking.output
for item in asking.output:
    if item.type == "function_call":
        print("Tool:", item.name, item.arguments)
        items.append({"type": "function_call_output", "call_id": item.call_id, "output": "4 degrees, rain"})
print("Told:", client.responses.create(model=model, input=items, tools=[weather], store=False).output_text)


# An answer of a given form.
class Toll(BaseModel):
    road: str
    euros: float


parsed = client.responses.parse(model=model, input=question, text_format=Toll, store=False)
print("Schema:", parsed.output_parsed)

# An image to look at.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
parts = [
    {"type": "input_text", "text": "What is to be seen?"},
    {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"},
]
seen = client.responses.create(model=model, input=[{"role": "user", "content": parts}], store=False)
print("Image:", seen.output_text)
