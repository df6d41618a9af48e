"""Wrap a client, say who the customer is, read the usage back. Everything else stays as it was.

    python examples/quickstart.py

No key needed: `LoopbackProvider` plays the vendor on this machine. In your program leave it out, and `openai.OpenAI()`
talks to OpenAI as always. The ledger is the file usage.db in the working directory.
"""

from __future__ import annotations

import openai

from token_meter import Meter
from token_meter.testing import LoopbackProvider


def main() -> None:
    with LoopbackProvider() as provider, Meter("usage.db") as meter:
        client = meter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="none"))

        with meter.customer("acme", feature="chat") as tally:
            client.responses.create(model="gpt-5", input="Hello")
        print(f"this block: {tally.calls} call, {tally.usage}")

        with meter.customer("globex", feature="search"):
            client.embeddings.create(model="text-embedding-3-small", input=["a parcel", "a letter"])
            client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Sort them."}])

        print("\nin the ledger:")
        for row in meter.usage(by=("customer", "feature", "model")):
            print(f"  {row['customer']:8} {row['feature']:8} {row['model']:24} {dict(row.usage)}")


if __name__ == "__main__":
    main()
