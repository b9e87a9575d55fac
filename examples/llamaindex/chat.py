"""LlamaIndex through Tollgate: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/llamaindex/chat.py

Needs `pip install llama-index-llms-openai-like`. `make run` prints the key.
"""

import os

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

url = os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080")
virtual_key = os.environ["TOLLGATE_KEY"]
model = os.environ.get("TOLLGATE_MODEL", "demo")
question = [ChatMessage("What is a tollgate?")]


def get_weather(city: str) -> str:
    """The weather in a city."""
    print("Tool: get_weather", city)
    return "4 degrees, rain"


llm = OpenAILike(
    api_base=f"{url}/v1", api_key=virtual_key, model=model, is_chat_model=True, is_function_calling_model=True
)
print("Answer:", llm.chat(question).message.content)

# A stream.
print("Stream: ", end="")
for part in llm.stream_chat(question):
    print(part.delta or "", end="", flush=True)
print()

# A tool, which is called when the model asks. (What is in brackets is for the simulator of the demo.)
weather = 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]'
called = llm.predict_and_call([FunctionTool.from_defaults(get_weather)], user_msg=weather)
print("Called:", called.response)

# An image to look at.
pixel = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6364f8cf500f0003860180"
    "5a347d6b0000000049454e44ae426082"
)
seen = ChatMessage(blocks=[TextBlock(text="What is to be seen?"), ImageBlock(image=pixel, image_mimetype="image/png")])
print("Image:", llm.chat([seen]).message.content)
