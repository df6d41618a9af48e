"""Clients you never see: `meter.instrument()` meters every client in the process, also those inside libraries.

    python examples/instrument_libraries.py

Works before or after the SDK is imported, for clients made before or after, and can be undone. A client you wrapped
yourself is still counted once.
"""

from __future__ import annotations

import openai
from google import genai

from token_meter import Meter
from token_meter.testing import LoopbackProvider


class SomebodysChatbot:
    """Stands for a library that makes its own clients and gives you no way to pass one in."""

    def __init__(self, provider: LoopbackProvider) -> None:
        self._openai = openai.OpenAI(base_url=provider.openai_url, api_key="none")
        self._gemini = genai.Client(api_key="none", http_options={"base_url": provider.google_url})

    def reply(self, text: str) -> str:
        """Asks one model, then another."""
        draft = self._openai.responses.create(model="gpt-5-mini", input=text).output_text
        chat = self._gemini.chats.create(model="gemini-2.5-flash")
        return chat.send_message(draft).text or ""


def main() -> None:
    with LoopbackProvider() as provider, Meter("instrument_libraries.db") as meter:
        chatbot = SomebodysChatbot(provider)

        with meter.instrument("openai", "google"), meter.customer("acme"):
            chatbot.reply("Where is my parcel?")

        chatbot.reply("This one is not metered: the instrumentation was taken back.")

        print(f"the provider answered {len(provider.requests)} requests")
        for row in meter.usage(by=("customer", "model")):
            print(f"metered: {row['customer']} {row['model']} {dict(row.usage)}")


if __name__ == "__main__":
    main()
