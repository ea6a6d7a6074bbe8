"""Engines with a cut, and what they answer, against transformers with the same one."""

import gc
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.serving import checkpoints, server
from tests.serving.reference import NEW, Answer, Reference, pictures

METHODS = (
    *("uniform", "pooling", "norm", "divprune", "fastervlm", "visionzip"),
    *("vispruner", "hiprune", "prumerge", "holov", "scope", "zoo-prune"),
)
# VisPruner goes on from the order of the round before: at 64 of 576 rounding decides, which differs between engines.
ROUNDS = {"vispruner": 574}
KEEPS = (576, 64, 1, 144, 64)  # one after the other in one engine
TEXT = "USER: is there a blue star in the image? ASSISTANT:"
ONE = "USER: <image>\nwhat is on the sign? ASSISTANT:"
TWO = "USER: <image>\n<image>\nis a star above the left card? ASSISTANT:"
TOLERANCE = 1e-4
REFUSED = {
    "fastv": "fastv needs query_attention",
    "mmtok": "mmtok needs text, text_valid",
    "tome": "merges in the tower's blocks",
    "nosuch": "no method is named 'nosuch'",
}
start = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - start:6.1f} s  {text}", flush=True)


class Engine:
    """An offline engine with a cut."""

    def __init__(self, folder: Path, method: str, keep: int):
        from vllm import LLM

        self.llm = LLM(
            model=str(folder),
            dtype="float32",
            max_model_len=1300,
            max_num_seqs=4,
            enforce_eager=True,
            distributed_executor_backend="uni",
            limit_mm_per_prompt={"image": 2},
            enable_mm_embeds=True,
            hf_overrides={"carve": [method, keep]},
        )

    def answers(self, *requests: tuple[str, list[Any]]) -> list[Answer]:
        """Of a batch: a prompt and its images each."""
        prompts = [
            {"prompt": text, "multi_modal_data": {"image": images} if images else {}} for text, images in requests
        ]
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True, logprobs=1)
        found = []
        for out in self.llm.generate(prompts, sampling, use_tqdm=False):
            tokens = list(out.outputs[0].token_ids)
            logs = [at[token].logprob for at, token in zip(out.outputs[0].logprobs, tokens, strict=True)]
            found.append(Answer(len(out.prompt_token_ids), tokens, logs))
        return found


def check(what: str, got: list[Answer], want: list[Answer]) -> None:
    """The same prompts' lengths and tokens, and log-probabilities."""
    worst = 0.0
    for one, other in zip(got, want, strict=True):
        assert one.length == other.length, f"{what}: {one.length} tokens of the prompt, expected {other.length}"
        assert one.tokens == other.tokens, f"{what}: {one.tokens}, expected {other.tokens}"
        worst = max(worst, *(abs(a - b) for a, b in zip(one.logs, other.logs, strict=True)))
    assert worst < TOLERANCE, f"{what}: log-probabilities differ by {worst:.1e}"
    say(f"{what}: {', '.join(str(one.length) for one in got)} tokens of the prompts, within {worst:.1e}")


def batch(reference: Reference, method: str, keep: int) -> tuple[list[tuple[str, list[Any]]], list[Answer]]:
    """Requests of unequal length, two images, one, none, and embeddings, and what transformers answers."""
    images = reference.images
    cuts = [reference.cut(method, keep, image) for image in range(len(images))]
    given = reference.rows[0][:100]
    requests = [(TWO, images[:2]), (TEXT, []), (ONE, [images[-1]]), (ONE, [given])]
    rows = [cuts[:2], [], [cuts[-1]], [given]]
    return requests, [reference.answer(text, *own) for (text, _), own in zip(requests, rows, strict=True)]


def methods(folder: Path, reference: Reference, keeps: dict[str, int]) -> None:
    """An engine for each method."""
    for name, keep in keeps.items():
        engine = Engine(folder, name, keep)
        requests, want = batch(reference, name, keep)
        check(f"{folder.name} {name} {keep}", engine.answers(*requests), want)
        del engine
        gc.collect()


def keeps(folder: Path, reference: Reference) -> None:
    """One engine, whose config is changed between requests: its caches hold the images with another K, or method."""
    engine = Engine(folder, "divprune", KEEPS[0])
    config = engine.llm.llm_engine.model_config.hf_config
    for method, keep in [*(("divprune", keep) for keep in KEEPS), ("norm", KEEPS[-1])]:
        config.carve = [method, keep]
        requests, want = batch(reference, method, keep)
        check(f"again with {method} {keep}", engine.answers(*requests), want)
    del engine
    gc.collect()


def refusals(folder: Path) -> None:
    for method, line in REFUSED.items():
        try:
            Engine(folder, method, 64)
        except ValueError as error:
            said = str(error)
        else:
            said = "nothing"
        assert line in said, f"{method}: {said}"
    say(f"refused: {', '.join(REFUSED)}")


def over_http(folder: Path, reference: Reference, keep: int = 144) -> None:
    """A server of its own, which gets pixels as a chat sends them, and embeddings."""
    with server.running(folder, {"carve": ["visionzip", keep]}) as url:
        say(f"the server is up at {url}")
        cuts = [reference.cut("visionzip", keep, image) for image in range(2)]
        got, want = [], []
        for question, images in (
            ("what is on the sign?", [0]),
            ("is a star on the card?", [0, 1]),
            ("what is a star?", []),
        ):
            prompt = "USER: " + "<image>\n" * len(images) + f"{question} ASSISTANT:"
            got.append(server.ask(url, question, [reference.images[image] for image in images], NEW))
            want.append(reference.answer(prompt, *(cuts[image] for image in images)))
        check(f"HTTP visionzip {keep}", got, want)


def run(short: bool) -> None:
    """Everything, or a part of it."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {family: Path(scratch) / family for family in ("llava", "llava_next")}
        for family, folder in folders.items():
            checkpoints.make(folder, family)
        reference = Reference(folders["llava"], pictures((336, 336), (336, 336), (200, 500)))
        say("transformers is ready")
        refusals(folders["llava"])
        keeps(folders["llava"], reference)
        chosen = ("visionzip", "prumerge") if short else METHODS
        methods(folders["llava"], reference, {name: ROUNDS.get(name, 64) for name in chosen})
        if not short:
            side = checkpoints.NEXT_SIDE
            anyres = Reference(folders["llava_next"], pictures((side, 2 * side), (3 * side, side), (250, 240)))
            methods(folders["llava_next"], anyres, dict.fromkeys(METHODS, 20))
        over_http(folders["llava"], reference)
    say("all equal")
