"""Vectors, images, speech and moderation with the official OpenAI SDK through Tollgate: only base URL and key are different.

    TOLLGATE_KEY=tg-… python examples/openai/media.py

Needs `pip install openai`. `make run` prints the key; the model has to be able to do all this, as the simulator is.
"""

import os

import openai

client = openai.OpenAI(
    base_url=os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080") + "/v1",
    api_key=os.environ["TOLLGATE_KEY"],
)
model = os.environ.get("TOLLGATE_MODEL", "demo")

vectors = client.embeddings.create(model=model, input=["a road", "a gate"])
print("Vectors:", [len(entry.embedding) for entry in vectors.data])

drawn = client.images.generate(model=model, prompt="A tollgate at dawn")
print("Drawn:", len(drawn.data[0].b64_json), "characters of base64")

spoken = client.audio.speech.create(model=model, voice="alloy", input="Please pay the toll.").read()
print("Speech:", len(spoken), "bytes")

heard = client.audio.transcriptions.create(model=model, file=("speech.wav", spoken))
print("Heard:", heard.text)

moderated = client.moderations.create(model=model, input="Please pay the toll.")
print("Flagged:", moderated.results[0].flagged)
