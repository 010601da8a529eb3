"""A judge behind any server that speaks OpenAI's chat protocol: vLLM, ``transformers serve``, or a service."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from harness.base.errors import UserError, keep_secret, without_password
from harness.base.records import UNTOLD, unless_default
from harness.judges.base import Answer, Judge

AGAIN = (408, 409, 429, 500, 502, 503, 504)
"""Status codes after which a request is worth repeating."""
REFUSALS = (400, 413, 422)
_NO_ROOM = re.compile(
    r"context[_ ](length|size|window)|max(imum)?[_ ]model[_ ]len|\bn_ctx|(prompt|input) is too long|"
    r"(prompt|input) tokens exceed|max_tokens must be at least 1, got -|max_new_tokens` must be <=",
    re.IGNORECASE,
)
"""What servers say of a question too long: OpenAI, vLLM in its versions, SGLang, llama.cpp, TGI, Anthropic."""


@dataclass(frozen=True)
class Served(Judge):
    """Asks ``url``/chat/completions, several questions at once.

    Attributes:
        url: of the server, up to and with ``/v1``; no part of the judge's identity.
        model: by the name that the server knows.
        key_env: environment variable that holds the key, which is in no configuration, run or log; null sends none, so
            that no key of another service goes to a server that has no use for it.
        read: ``words`` lets it compare before it says its verdict; ``letters`` asks for the verdict alone, which
            takes a few tokens in place of a hundred, and may be a worse one.
        temperature, max_tokens: of an answer.
        seed: of the sampling, where the temperature is above 0 and the server knows seeds.
        at_once: questions under way at a time.
        timeout_s: seconds for one answer.
        retries: attempts after the first, with growing pauses, and with the pause that a server asks for.
        price_in, price_out: of a million tokens, in a currency of yours; null: no cost is counted.
    """

    url: str = field(default="http://127.0.0.1:8000/v1", metadata=UNTOLD)
    model: str = ""
    key_env: str | None = field(default=None, metadata=UNTOLD)
    read: Literal["letters", "words"] = unless_default("words")
    temperature: Annotated[float, Ge(0)] = 0.0
    max_tokens: Annotated[int, Gt(0)] = 512
    seed: Annotated[int, Ge(0)] = unless_default(0)
    at_once: Annotated[int, Gt(0)] = field(default=4, metadata=UNTOLD)
    timeout_s: Annotated[float, Gt(0)] = field(default=120.0, metadata=UNTOLD)
    retries: Annotated[int, Ge(0)] = field(default=5, metadata=UNTOLD)
    price_in: Annotated[float, Ge(0)] | None = field(default=None, metadata=UNTOLD)
    price_out: Annotated[float, Ge(0)] | None = field(default=None, metadata=UNTOLD)

    def __post_init__(self) -> None:
        """An address is stored, and a password in it would be too; ``ValueError`` is what ``build()`` collects."""
        if "@" in self.url.partition("://")[2].partition("/")[0]:
            raise ValueError("url holds a user or a password: name a variable with the key (key_env) instead")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model and sampling."""
        seed = {"seed": self.seed} if self.seed else {}
        return {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens, **seed}

    @property
    def verdict_alone(self) -> bool:
        """Where letters are asked for."""
        return self.read == "letters"

    def again(self, number: int) -> Served | None:
        """With another seed, where it samples."""
        return replace(self, seed=self.seed + number) if self.temperature > 0 else None

    def answers(self, questions: Sequence[str], told: Callable[[int, Answer], None]) -> None:
        """Ask them; the first that gets no answer ends it, and those that were answered are told."""
        session = self._session()
        with ThreadPoolExecutor(self.at_once) as pool:
            asked = {pool.submit(self._ask, session, question): i for i, question in enumerate(questions)}
            try:
                for done in as_completed(asked):
                    told(asked[done], done.result())
            except BaseException:
                for one in asked:
                    one.cancel()
                for one, number in asked.items():  # under way when another failed: paid for, so kept
                    if not one.cancelled() and one.exception() is None:
                        told(number, one.result())
                raise
            finally:
                session.close()

    def _session(self) -> Any:
        """A session of ``requests`` that repeats what is worth repeating.

        It goes through the proxies of the environment, and sends no password that ``~/.netrc`` has for the host:
        without an ``auth`` of its own, requests would, and in place of the key.
        """
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util.retry import Retry

        again = Retry(
            total=self.retries, backoff_factor=0.5, backoff_jitter=0.2, status_forcelist=AGAIN, allowed_methods=None,
            respect_retry_after_header=True, raise_on_status=False,
        )  # fmt: skip
        key = self._key()

        class Session(requests.Session):
            def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
                """After a redirection: without the key on another host, and with nothing else."""
                if self.should_strip_auth(response.request.url, prepared_request.url):
                    prepared_request.headers.pop("Authorization", None)

        def sign(request: Any) -> Any:
            request.headers.pop("Authorization", None)
            if key is not None:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        session = Session()
        session.auth = sign
        for kind in ("http://", "https://"):
            session.mount(kind, HTTPAdapter(max_retries=again, pool_maxsize=self.at_once))
        return session

    def _key(self) -> str | None:
        """From the environment; None where the server wants none."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env)
        if not key:
            fix = f"export {self.key_env}=…, or judge.key_env=null for a server that wants none"
            raise UserError("no such environment variable", key="judge.key_env", value=self.key_env, fix=fix)
        keep_secret(key)
        return key

    def _ask(self, session: Any, question: str) -> Answer:
        import requests

        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stream": False,
            **({"seed": self.seed} if self.temperature > 0 else {}),
        }
        try:
            reply = session.post(f"{self.url.rstrip('/')}/chat/completions", json=body, timeout=self.timeout_s)
        except requests.RequestException as error:
            raise self._error(f"gives no answer ({type(error).__name__})", "start it, or see judge.url") from None
        if reply.status_code in (401, 403):
            fix = "judge.key_env=NAME of the variable that holds its key"
            raise self._error(f"refuses the key (status {reply.status_code})", fix)
        if reply.status_code in REFUSALS and (why := _no_room(reply)) is not None:
            return Answer(f"not read: {why}", whole=False, lasting=False)
        if not reply.ok:
            said = without_password(" ".join(reply.text.split()))[:200]
            raise self._error(
                f"answers with status {reply.status_code}: {said}", "see judge.model and the server's log"
            )
        try:
            found = reply.json()
            choice, usage = found["choices"][0], found.get("usage") or {}
            text, whole = str(choice["message"]["content"] or ""), choice.get("finish_reason") != "length"
        except (ValueError, KeyError, IndexError, TypeError):
            raise self._error("answers with what is no chat completion", "name its /v1: judge.url=…/v1") from None
        tokens = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        return Answer(text, *tokens, whole=whole)

    def _error(self, rule: str, fix: str) -> UserError:
        return UserError(f"the judge's server {rule}", key="judge.url", value=self.url, fix=fix)


def _no_room(reply: Any) -> str | None:
    """What a refusal says of a question that is longer than the model's context; None where it is of something else.

    Only its message, type and code are read, since servers quote what they were sent.
    """
    try:
        body = reply.json()
    except ValueError:
        return None
    told = body.get("error", body) if isinstance(body, Mapping) else body
    parts = [told.get(k) for k in ("message", "type", "code", "detail")] if isinstance(told, Mapping) else [told]
    said = " ".join(str(part) for part in parts if isinstance(part, str))
    return without_password(" ".join(said.split()))[:200] if _NO_ROOM.search(said) else None
