"""A small server of OpenAI's chat protocol whose judge has the biases that a test plants in it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Planted:
    """What the judge does.

    Attributes:
        first: share of questions on which it names the reply shown first, whatever that is.
        longer: share of the others on which it names the longer one.
        unreadable: share of answers without a verdict.
        fails: status codes of the first requests, in order.
        refused: word -> status and body with which each question is refused that holds it.
        elsewhere: address up to ``/v1`` to which all are sent on; None: none is.
        stops_after: answers after which every further request is refused; None: none is.
    """

    first: float = 0.0
    longer: float = 0.0
    unreadable: float = 0.0
    fails: list[int] = field(default_factory=list)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    elsewhere: str | None = None
    stops_after: int | None = None
    asked: list[str] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    seeds: set[int | None] = field(default_factory=set)

    def says(self, question: str, seed: int | None = None) -> str:
        """An answer; the better reply holds the word "good", and what is written anew does so."""
        if "<reply A>" not in question:  # one who writes
            asked = "Write the reply anew" in question, "Say briefly" in question
            name = re.findall(r"question \d+", question)[0] + " again" * (seed or 0)
            return f"a good answer to {name}" if asked[0] else "It falls short." if asked[1] else f"poor: {name}"
        first, second = (re.search(rf"<reply {n}>\n(.*?)\n</reply {n}>", question, re.DOTALL) for n in "AB")
        assert first and second
        a, b = first.group(1), second.group(1)

        def drawn(what: str) -> float:
            return int(hashlib.sha256(f"{what}{question}".encode()).hexdigest()[:8], 16) / 2**32

        if drawn("unreadable") < self.unreadable:
            return "Both have their merits, and I would not choose."
        if drawn("first") < self.first:
            return "The first one. [[A]]"
        if drawn("longer") < self.longer:
            return "[[A]]" if len(a) > len(b) else "[[B]]"
        return "[[C]]" if ("good" in a) == ("good" in b) else "[[A]]" if "good" in a else "[[B]]"


@contextmanager
def serving(planted: Planted) -> Iterator[str]:
    """The server on a port of its own; yields its address up to ``/v1``."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                planted.keys.add(self.headers.get("Authorization"))
                planted.seeds.add(body.get("seed"))
                status = planted.fails.pop(0) if planted.fails else 200
                if planted.stops_after is not None and len(planted.asked) >= planted.stops_after:
                    status = 400
                question = body["messages"][0]["content"]
                said_no = next((no for word, no in planted.refused.items() if word in question), (status, ""))
                status = said_no[0]
                if status == 200:
                    planted.asked.append(question)
            answer = planted.says(question, body.get("seed"))
            said = {"choices": [{"message": {"role": "assistant", "content": answer}}],
                    "usage": {"prompt_tokens": len(question) // 4, "completion_tokens": 5}}  # fmt: skip
            text = (json.dumps(said) if status == 200 else said_no[1] or '{"error": "no"}').encode()
            self.send_response(status if planted.elsewhere is None else 307)
            if planted.elsewhere is not None:
                self.send_header("Location", f"{planted.elsewhere}/chat/completions")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Quietly."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
