"""Google's official Gen AI SDK through Tollgate: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/google-genai/generate.py

Needs `pip install google-genai`. `make run` prints the key.
"""

import base64
import os

from google import genai
from google.genai import errors, types
from pydantic import BaseModel


def connect(virtual_key: str) -> genai.Client:
    url = os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080")
    headers = {"x-tollgate-tags": "feature=examples"}
    return genai.Client(api_key=virtual_key, http_options=types.HttpOptions(base_url=url, headers=headers))


client = connect(os.environ["TOLLGATE_KEY"])
model = os.environ.get("TOLLGATE_MODEL", "demo")
question = "What is a tollgate?"

print("Models:", [model.name for model in client.models.list()])

# A whole answer.
brief = types.GenerateContentConfig(system_instruction="Be brief.", max_output_tokens=50)
answer = client.models.generate_content(model=model, contents=question, config=brief)
print("Answer:", answer.text)
print("Usage:", answer.usage_metadata.prompt_token_count, "in,", answer.usage_metadata.candidates_token_count, "out")

# A stream.
print("Stream: ", end="")
for chunk in client.models.generate_content_stream(model=model, contents=question):
    print(chunk.text or "", end="", flush=True)
    usage = chunk.usage_metadata
print("\nUsage:", usage.prompt_token_count, "in,", usage.candidates_token_count, "out")


# A tool: the SDK calls the function when the model asks, and goes on. (What is in brackets is for the demo's simulator.)
def get_weather(city: str) -> str:
    """The weather in a city."""
    print("Tool: get_weather", city)
    return "4 degrees, rain"


weather = 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]'
with_tool = types.GenerateContentConfig(tools=[get_weather])
print("Told:", client.models.generate_content(model=model, contents=weather, config=with_tool).text)


# An answer of a given form.
class Toll(BaseModel):
    road: str
    euros: float


form = types.GenerateContentConfig(response_mime_type="application/json", response_schema=Toll)
print("Schema:", client.models.generate_content(model=model, contents=question, config=form).parsed)

# An image to look at.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
image = types.Part.from_bytes(data=base64.b64decode(PIXEL), mime_type="image/png")
print("Image:", client.models.generate_content(model=model, contents=["What is to be seen?", image]).text)

# A vector, from a model that makes some.
if embedder := os.environ.get("TOLLGATE_EMBEDDING_MODEL"):
    embedded = client.models.embed_content(model=embedder, contents="a road with a gate")
    print("Vector:", [len(embedding.values) for embedding in embedded.embeddings])

# How many tokens a question has: of Google's own models only.
if "TOLLGATE_COUNTS" in os.environ:
    print("Count:", client.models.count_tokens(model=model, contents=question).total_tokens)


# A wrong key, an unknown model, a budget that is used up: ordinary errors of the SDK.
def refuse(why: str, client: genai.Client, model: str) -> None:
    try:
        client.models.generate_content(model=model, contents=question)
    except errors.ClientError as error:
        print(f"{why}: {error.code} {error.status} {error.message}")


refuse("Wrong key", connect("tg-wrong"), model)
refuse("Unknown model", client, "a-model-nobody-registered")
if "TOLLGATE_SPENT_KEY" in os.environ:
    refuse("Budget used up", connect(os.environ["TOLLGATE_SPENT_KEY"]), model)
