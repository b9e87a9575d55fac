"""LiteLLM as a client of Tollgate: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/litellm/completion.py

Needs `pip install litellm mcp`. `make run` prints the key. What stands before the slash is the API that LiteLLM is to speak.
"""

import os

import litellm
import openai

url = os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080")
model = os.environ.get("TOLLGATE_MODEL", "demo")
question = [{"role": "user", "content": "What is a tollgate?"}]
weather = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def show(api: str, base_url: str) -> None:
    print("API:", api)
    where = {"model": f"{api}/{model}", "api_base": base_url, "api_key": os.environ["TOLLGATE_KEY"], "max_tokens": 50}
    answer = litellm.completion(**where, messages=question)
    print("Answer:", answer.choices[0].message.content)

    # A stream.
    print("Stream: ", end="")
    for chunk in litellm.completion(**where, messages=question, stream=True, stream_options={"include_usage": True}):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
        usage = getattr(chunk, "usage", None)
    print("\nUsage:", usage.prompt_tokens, "in,", usage.completion_tokens, "out")

    # A tool: the model asks for it, we answer, it goes on. (What is in brackets is for the simulator of the demo.)
    messages = [
        {"role": "user", "content": 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]'},
    ]
    asking = litellm.completion(**where, messages=messages, tools=[weather]).choices[0].message
    messages.append(asking)
    for call in asking.tool_calls or []:
        print("Tool:", call.function.name, call.function.arguments)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "4 degrees, rain"})
    told = litellm.completion(**where, messages=messages, tools=[weather])
    print("Told:", told.choices[0].message.content)

    # An unknown model. At Gemini's API LiteLLM tells the class and status of its error by looking for numbers such as 403
    # anywhere in the text, and the random id of the request is in it: now and then a 404 is taken for something else. So
    # catch what all of its errors are, and read what it says.
    try:
        litellm.completion(**{**where, "model": f"{api}/a-model-nobody-registered"}, messages=question)
    except openai.APIError as error:
        print("Refused:", error.message)


show("openai", f"{url}/v1")
show("anthropic", url)
show("gemini", f"{url}/v1beta")
