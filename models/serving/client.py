"""An OpenAI-compatible server that takes embeddings of images: vLLM with `--enable-mm-embeds`."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.errors import CommandError, one_line

_SECONDS = 600  # a server that is busy answers late
_SAID = 300  # characters of a server's complaint that are shown


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a server says.

    Attributes:
      text: the answer.
      prompt_tokens: of the prompt, those of the images among them.
      completion_tokens: of the answer.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


def as_file(rows: Any) -> bytes:
    """[K, D] of any float dtype as an .npy file of float32, which holds each exactly; engines cast to their own."""
    file = io.BytesIO()
    np.save(file, np.asarray(rows, np.float32), allow_pickle=False)
    return file.getvalue()


def part(rows: Any) -> dict[str, str]:
    """[K, D] as what stands in a chat message of vLLM in the place of an image."""
    return {"type": "image_embeds", "image_embeds": base64.b64encode(as_file(rows)).decode()}


def check_address(url: str) -> None:
    """Raise CommandError for what cannot be the address of a server."""
    if not re.fullmatch(r"https?://[!-~]+", url):
        raise CommandError(f"{url!r} is no address of a server; expected one such as http://127.0.0.1:8000")


def ask(url: str, images: Sequence[Any], prompt: str, *, max_new_tokens: int) -> Answer:
    """Ask the first model of a server a question about images, greedily.

    Args:
      url: of the server, such as http://127.0.0.1:8000; it may end in /v1.
      images: [K, D] each, of the checkpoint that the server has.
      prompt: the question; the server adds the checkpoint's chat template.
      max_new_tokens: the longest answer.

    Raises:
      CommandError: there is no server, it refuses, or it is none of this kind.
    """
    check_address(url)
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    content = [*map(part, images), {"type": "text", "text": prompt}]
    try:
        request = {
            "model": _get(f"{base}/models")["data"][0]["id"],
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "add_special_tokens": True,  # as processors do with a chat; vLLM leaves out the first one otherwise
        }
        said = _get(f"{base}/chat/completions", request)
        text, usage = said["choices"][0]["message"]["content"], said["usage"]
        return Answer(str(text).strip(), int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
    except urllib.error.HTTPError as error:
        raise CommandError(f"{url} refuses with status {error.code}: {_complaint(error)}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError among them
        reason = getattr(error, "reason", error)
        raise CommandError(f"{url}: no server answers there ({reason}); start one, or name another address") from error
    except (ValueError, LookupError, TypeError) as error:
        raise CommandError(f"{url} does not answer as an OpenAI-compatible server does ({error!r})") from error


def _get(address: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
        return json.load(answer)


def _complaint(error: urllib.error.HTTPError) -> str:
    """A server's own words, without the envelope."""
    said = error.read().decode(errors="replace")
    with contextlib.suppress(ValueError, LookupError, TypeError):
        said = json.loads(said)["error"]["message"]
    return one_line(said)[:_SAID]
