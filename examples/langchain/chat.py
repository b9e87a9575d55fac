"""LangChain through Tollgate, with its OpenAI and its Anthropic classes: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/langchain/chat.py

Needs `pip install langchain-openai langchain-anthropic`. `make run` prints the key.
"""

import os

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

url = os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080")
virtual_key = os.environ["TOLLGATE_KEY"]
model = os.environ.get("TOLLGATE_MODEL", "demo")
question = "What is a tollgate?"


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"4 degrees, rain in {city}"


class Toll(BaseModel):
    """What a road costs."""

    road: str
    euros: float


def show(chat: BaseChatModel) -> None:
    print("Class:", type(chat).__name__)
    answer = chat.invoke(question)
    print("Answer:", answer.text)

    # A stream; its parts add up to the message.
    print("Stream: ", end="")
    whole = None
    for part in chat.stream(question):
        print(part.text, end="", flush=True)
        whole = part if whole is None else whole + part
    usage = whole.usage_metadata
    print("\nUsage:", usage["input_tokens"], "in,", usage["output_tokens"], "out")

    # A tool: the model asks for it, we answer, it goes on. (What is in brackets is for the simulator of the demo.)
    with_tool = chat.bind_tools([get_weather])
    messages = [HumanMessage('How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]')]
    asking = with_tool.invoke(messages)
    messages.append(asking)
    for call in asking.tool_calls:
        print("Tool:", call["name"], call["args"])
        messages.append(ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]))
    print("Told:", with_tool.invoke(messages).text)

    # An answer of a given form.
    print("Schema:", chat.with_structured_output(Toll, method="json_schema").invoke(question))


# At an address that is not OpenAI's own, LangChain has to be told that it may ask for the usage of a stream.
show(ChatOpenAI(base_url=f"{url}/v1", api_key=virtual_key, model=model, stream_usage=True))
show(ChatOpenAI(base_url=f"{url}/v1", api_key=virtual_key, model=model, use_responses_api=True))
show(ChatAnthropic(base_url=url, api_key=virtual_key, model=model, max_tokens=50))

# Vectors, from a model that makes some. What is sent is text: the gateway may lead to a model of another tokenizer.
if embedder := os.environ.get("TOLLGATE_EMBEDDING_MODEL"):
    embeddings = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key=virtual_key, model=embedder, check_embedding_ctx_length=False
    )
    print("Vectors:", [len(vector) for vector in embeddings.embed_documents(["a road", "a gate"])])
