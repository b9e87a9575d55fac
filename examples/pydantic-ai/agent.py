"""PydanticAI through Tollgate, with its OpenAI and its Anthropic models: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/pydantic-ai/agent.py

Needs `pip install 'pydantic-ai-slim[openai,anthropic]'`. `make run` prints the key.
"""

import os

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ModelHTTPError
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

url = os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080")
virtual_key = os.environ["TOLLGATE_KEY"]
model = os.environ.get("TOLLGATE_MODEL", "demo")
question = "What is a tollgate?"
openai = OpenAIProvider(base_url=f"{url}/v1", api_key=virtual_key)
anthropic = AnthropicProvider(base_url=url, api_key=virtual_key)


class Toll(BaseModel):
    """What a road costs."""

    road: str
    euros: float


def get_weather(city: str) -> str:
    """The weather in a city."""
    print("Tool: get_weather", city)
    return "4 degrees, rain"


def show(model: Model) -> None:
    print("Class:", type(model).__name__)
    agent = Agent(model, instructions="Be brief.")
    print("Answer:", agent.run_sync(question).output)

    # A stream.
    print("Stream: ", end="")
    streamed = agent.run_stream_sync(question)
    for text in streamed.stream_text(delta=True):
        print(text, end="", flush=True)
    print("\nUsage:", streamed.usage.input_tokens, "in,", streamed.usage.output_tokens, "out")

    # A tool, which the agent calls when the model asks. (What is in brackets is for the simulator of the demo.)
    weather = 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]'
    print("Told:", Agent(model, tools=[get_weather]).run_sync(weather).output)

    # An answer of a given form: the arguments of a tool that has to be called.
    toll = 'What does the bridge cost? [[simulate tool=final_result,args={"road":"bridge","euros":1.5}]]'
    print("Schema:", Agent(model, output_type=Toll).run_sync(toll).output)

    # An image to look at.
    pixel = bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6364f8cf500f0003860180"
        "5a347d6b0000000049454e44ae426082"
    )
    image = BinaryContent(pixel, media_type="image/png")
    print("Image:", agent.run_sync(["What is to be seen?", image]).output)


show(OpenAIChatModel(model, provider=openai))
show(OpenAIResponsesModel(model, provider=openai))
show(AnthropicModel(model, provider=anthropic))

# An unknown model: an ordinary error of the framework.
try:
    Agent(OpenAIChatModel("a-model-nobody-registered", provider=openai)).run_sync(question)
except ModelHTTPError as error:
    print("Unknown model:", error.status_code, error.body["message"])
