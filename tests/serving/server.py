"""vLLM's OpenAI-compatible server, started and stopped, and what it answers."""

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tests.serving.reference import Answer

LIMIT_S = 300  # for its start, far more than is needed


@contextlib.contextmanager
def running(folder: Path, overrides: dict[str, Any]) -> Iterator[str]:
    """Its address; the server and the processes that it starts end with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--model={folder}", "--host=127.0.0.1", f"--port={port}", "--dtype=float32", "--max-model-len=1300"]
    flags += ["--enforce-eager", "--max-num-seqs=4", "--limit-mm-per-prompt", '{"image": 2}', "--enable-mm-embeds"]
    flags += [f"--hf-overrides={json.dumps(overrides)}"]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            until = time.monotonic() + LIMIT_S
            while not _healthy(url):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise AssertionError(f"the server did not start:\n{log.read().decode(errors='replace')[-4000:]}")
                time.sleep(0.5)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def ask(url: str, question: str, images: list[Image.Image], new_tokens: int) -> Answer:
    """A chat with images as a browser would send them."""
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _png(image)}} for image in images]
    content.append({"type": "text", "text": question})
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
        "return_tokens_as_token_ids": True,
        "add_special_tokens": True,
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        said = json.load(answer)
    found = said["choices"][0]["logprobs"]["content"]
    tokens = [int(one["token"].removeprefix("token_id:")) for one in found]
    return Answer(said["usage"]["prompt_tokens"], tokens, [one["logprob"] for one in found])


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
