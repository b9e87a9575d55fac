"""Files and a batch with the official OpenAI SDK through Tollgate: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/openai/batch.py

Needs `pip install openai`. `make run` prints the key. A file is kept at one provider: that of the alias its lines name.
"""

import json
import os
import time

import openai

client = openai.OpenAI(
    base_url=os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ["TOLLGATE_KEY"],
)
model = os.environ.get("TOLLGATE_MODEL", "demo")

lines = [
    {
        "custom_id": place,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, "messages": [{"role": "user", "content": f"A toll in {place}?"}], "max_tokens": 50},
    }
    for place in ("Oslo", "Bergen")
]
file = client.files.create(purpose="batch", file=("tolls.jsonl", "\n".join(map(json.dumps, lines)).encode()))
print("File:", file.id, file.bytes, "bytes")

batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)
print("Batch:", batch.status, batch.request_counts.completed, "of", batch.request_counts.total)

for line in client.files.content(batch.output_file_id).text.splitlines():
    result = json.loads(line)
    print("Answer:", result["response"]["body"]["choices"][0]["message"]["content"])

client.files.delete(file.id)
print("Files left:", [left.id for left in client.files.list() if left.id == file.id])
