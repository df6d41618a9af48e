"""Streams: metered to the end, given up early, and cut by the network. Each is one event, and says how sure it is.

    python examples/streaming.py

* OpenAI tells counts only at the very end, and only when asked. The meter asks where the host is known to allow it and
  hides the extra chunk again: your loop sees what it always saw.
* A stream you leave early still costs money. Anthropic and Gemini have told counts by then (`partial`); OpenAI has
  not, so they are estimated from what was sent and what arrived (`estimated`).
"""

from __future__ import annotations

from itertools import islice

import anthropic
import openai

from token_meter import Meter
from token_meter.testing import LoopbackProvider

QUESTION = [{"role": "user", "content": "Tell me everything about parcels."}]


def main() -> None:
    with LoopbackProvider() as provider, Meter("streaming.db") as meter:
        meter.allow_include_usage("127.0.0.1:*")  # api.openai.com and many others are known; this host is not
        chat = meter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="none"))
        claude = meter.wrap(anthropic.Anthropic(base_url=provider.anthropic_url, api_key="none"))
        cut = meter.wrap(openai.OpenAI(base_url=provider.url_with(cut=4) + "/v1", api_key="none"))

        with meter.customer("acme", case="read to the end"):
            chunks = list(chat.chat.completions.create(model="gpt-5-mini", messages=QUESTION, stream=True))
        without_choices = [chunk for chunk in chunks if not chunk.choices]
        print(f"the program saw {len(chunks)} chunks, {len(without_choices)} of them without choices")

        with meter.customer("acme", case="given up, openai"):
            stream = chat.chat.completions.create(model="gpt-5-mini", messages=QUESTION, stream=True)
            list(islice(stream, 4))
            stream.close()

        with meter.customer("acme", case="given up, anthropic"):
            events = claude.messages.create(model="claude-haiku-4-5", max_tokens=200, messages=QUESTION, stream=True)
            list(islice(events, 4))
            events.close()

        with meter.customer("acme", case="cut by a proxy"):  # ends without any error: no SDK notices
            list(cut.chat.completions.create(model="gpt-5-mini", messages=QUESTION, stream=True))

        print()
        for event in meter.events():
            why = ", ".join(event.anomalies) or "-"
            print(f"{event.dimensions['case']:20} {event.status:10} {event.usage!r:32} {why}")


if __name__ == "__main__":
    main()
