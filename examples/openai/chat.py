"""The official OpenAI SDK through Tollgate: only base URL and key are different.

    TOLLGATE_URL=http://127.0.0.1:8080/v1 TOLLGATE_KEY=tg-… python examples/openai/chat.py

Needs `pip install openai`. `make run` prints the key.
"""

import os

import openai

client = openai.OpenAI(
    base_url=os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080/v1"),
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
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print("\nUsage:", chunk.usage.prompt_tokens, "in,", chunk.usage.completion_tokens, "out")

# A budget that is used up, a limit, a kill switch: ordinary errors of the SDK, with a code that says which.
try:
    client.chat.completions.create(model="a-model-nobody-registered", messages=question)
except openai.NotFoundError as error:
    print("Refused:", error.status_code, error.code)
