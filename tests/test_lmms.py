"""What a harness asks, apart from the harness: `.ci/lmms` runs lmms-eval itself."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from experiments.core.config import PromptConfig
from experiments.core.journal import Journal
from experiments.core.workers import Alone
from experiments.evaluation import likelihood
from experiments.evaluation.probe import reduced
from experiments.evaluation.worker import ModelWorker
from experiments.lmms import model_args
from experiments.lmms.answers import SHAPE, Answers
from experiments.lmms.requests import Request, Requests, batches, options
from models.errors import CommandError
from tests.commands import save_checkpoint
from tests.question_files import noise

CARVED = "tokencarve@2=5"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    model = save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")
    return ModelWorker(model_args.read({"pretrained": model, "schedule": CARVED, "batch_size": "2"}).worker)


def request(doc_id=0, text="Where is it?", *, images=1, task="a", **more):
    def look():
        return [noise((60, 40), 10 * doc_id + i) for i in range(images)]

    return Request(task, "test", doc_id, text, look, **{"max_new_tokens": 6} | more)


class TestModelArgs:
    @pytest.mark.parametrize(
        ("given", "cell", "keep"),
        [
            ({}, "vanilla", None),
            ({"keep": 128}, "tokencarve", 128),
            ({"keep": "0.222", "method": "divprune"}, "divprune", 0.222),
            ({"keep": 64, "information": "svd"}, "tokencarve-svd", 64),
            ({"keep": 64, "information": "subspace", "method": "tokencarve"}, "tokencarve", 64),
        ],
    )
    def test_what_is_asked(self, given, cell, keep):
        args = model_args.read(given)
        assert args.cell == cell
        assert [(one.name, own) for one, own in args.worker.comparison.methods] == ([(cell, keep)] if keep else [])
        assert args.worker.prompt == PromptConfig()  # LLaVA-1.5's way

    def test_schedule(self):
        args = model_args.read({"schedule": '"tome@tower=288 tokencarve@2=128,calibrated"'})
        ((name, cuts),) = args.worker.comparison.schedules
        assert args.cell == name == " ".join(map(str, cuts)) == "tome@tower=288 tokencarve@2=128,calibrated"

    def test_all_the_others(self):
        given = {"border": "last", "image_aspect_ratio": "crop", "conversation": "checkpoint", "max_new_tokens": 9}
        more = {"dtype": "bfloat16", "revision": "v1", "seed": 3, "restart": True, "journal": "j", "pretrained": "m"}
        args = model_args.read(given | more | {"batch_size": "4", "device": "cuda", "max_batch_size": None})
        worker, model = args.worker, args.worker.model
        assert worker.prompt == PromptConfig(**given)
        assert (model.source, model.revision, model.dtype) == ("m", "v1", "bfloat16")
        assert (worker.seed, worker.batch_size, str(args.journal), args.restart) == (3, 4, "j", True)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"kep": 3}, "unrecognized arguments: --kep=3"),
            ({"keep": 0}, "argument --keep: '0' is neither"),
            ({"batch_size": "auto"}, "argument --batch_size: 'auto' is not a whole number"),
            ({"border": "no"}, "argument --border: invalid choice: 'no'"),
            ({"restart": "perhaps"}, "argument --restart: invalid choice: 'perhaps'"),
            ({"method": "fastv"}, "needs keep"),
            ({"schedule": CARVED, "keep": 3}, "schedule says all"),
            ({"keep": 3, "method": "fastv", "information": "svd"}, "not for fastv"),
        ],
    )
    def test_what_there_is_not(self, given, words):
        with pytest.raises(CommandError, match=words):
            model_args.read(given)


class TestRequest:
    def test_options_are_read_and_left_alone(self):
        given = {"until": ["ASSISTANT:"], "max_new_tokens": 1024, "temperature": 0.2, "image_aspect_ratio": "original"}
        before = json.dumps(given)
        assert options(given) == {"max_new_tokens": 1024, "until": ("ASSISTANT:",)}
        assert json.dumps(given) == before
        assert options({"until": ["\n\n"]}, max_new_tokens=7) == {"max_new_tokens": 7, "until": ()}  # the harness's own
        assert options({"until": "\n"}) == {"max_new_tokens": 128, "until": ("\n",)}

    def test_an_answer_ends_at_the_first_of_them(self):
        assert request(until=("END", "STOP")).ended("so STOP or END") == "so"
        assert request(until=("END",)).ended("so it is") == "so it is"

    def test_keys(self):
        ones = [request(), request(1), request(text="x"), request(max_new_tokens=7), request(continuation="a")]
        assert len({one.key for one in ones}) == 5
        assert request().key == request(images=2, until=("x",)).key  # the prediction is the same

    def test_batches_are_of_like_with_like(self):
        requests = [
            request(0, "long " * 9),
            request(1, "b"),
            request(2, "a", task="b"),
            request(3, "c", max_new_tokens=9),
            request(4, "d"),
            request(5, "e", continuation="yes"),
            request(1, "b"),  # as a harness pads with
        ]
        assert list(batches(requests, 2)) == [[1, 4], [0], [2], [3], [5]]

    @pytest.mark.parametrize(
        ("look", "words"),
        [
            (lambda: [1 / 0], r"cannot be read \(ZeroDivisionError: "),
            (lambda: ["film.mp4"], "it shows str"),
        ],
    )
    def test_what_cannot_be_seen_is_said(self, look, words):
        requests = [
            Request("a", "test", 0, "?", look),
            Request("a", "test", 1, "?", lambda: [None, Image.new("L", (3, 4))]),
        ]
        found = Requests.read(requests, [0, 1])
        with pytest.raises(CommandError, match=words):
            found.sample(0)
        assert [(image.mode, image.size) for image in found.sample(1).images] == [("RGB", (3, 4))]


class TestAnswers:
    def ask(self, worker, path, requests, cells=("vanilla", CARVED)):
        answers = Answers(Alone(worker), Journal(path, {"a": 1}, shape=SHAPE), batch_size=2)
        with tqdm(total=len(requests), file=io.StringIO()) as bar:
            answers.ask(requests, cells, bar)
            assert bar.n == len({one.key for one in requests})
        return answers

    def test_they_are_those_of_the_model_asked_alone(self, worker, tmp_path):
        """Two images in one question, none in another."""
        requests = [request(0), request(1, images=2), request(2, "What is 2?", images=0)]
        answers = self.ask(worker, tmp_path / "a.jsonl", requests)
        checkpoint, found = worker.checkpoint, set()
        for one in requests:
            images = one.look()
            text = f"{SYSTEM} USER: {'<image>' * len(images)}{one.text} ASSISTANT:".replace("<image>", "<image>\n")
            got = checkpoint.processor(images=images or None, text=[text], return_tensors="np")
            for name, carve in (("vanilla", None), (CARVED, 5)):
                tokens = checkpoint.llava.generate(**got, max_new_tokens=6, carve=carve)
                assert answers.prediction(one, name) == checkpoint.decode(tokens)[0]
                found.add(answers.prediction(one, name))
        assert len(found) > 3

    def test_an_interruption_costs_one_batch_and_another_cell_its_own_work(self, worker, tmp_path, monkeypatch):
        requests, calls, original = [request(i) for i in range(5)], [], ModelWorker.answer
        self.ask(worker, tmp_path / "whole.jsonl", requests)

        def answer(self, questions, indices, cells, **options):
            calls.append((list(indices), list(cells)))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(self, questions, indices, cells, **options)

        monkeypatch.setattr(ModelWorker, "answer", answer)
        with pytest.raises(KeyboardInterrupt):
            self.ask(worker, tmp_path / "a.jsonl", requests)
        self.ask(worker, tmp_path / "a.jsonl", requests)
        assert [indices for indices, _ in calls] == [[0, 1], [2, 3], [2, 3], [4]]
        assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        self.ask(worker, tmp_path / "b.jsonl", requests[:2], ["vanilla"])
        self.ask(worker, tmp_path / "b.jsonl", requests[:2])
        assert calls[-1] == ([0, 1], [CARVED])
        others = Journal(tmp_path / "a.jsonl", {"a": 1}).entries
        answers = Answers(Alone(worker), Journal(tmp_path / "c.jsonl", {}), batch_size=2, others=others)
        assert all(answers.known(one, name) for one in requests for name in ("vanilla", CARVED))

    def test_what_cannot_be_asked_does_not_stop_its_neighbour(self, worker, tmp_path):
        bad = Request("a", "test", 0, "Where is it?", lambda: [1 / 0])
        answers = self.ask(worker, tmp_path / "a.jsonl", [bad, request(1)])
        assert answers.prediction(bad, CARVED) is None
        assert "ZeroDivisionError" in answers.errors[bad.key]
        assert answers.prediction(request(1), CARVED)
        assert self.ask(worker, tmp_path / "a.jsonl", [bad]).errors == answers.errors

    def test_a_likelihood_is_that_of_the_whole_sequence(self, worker, tmp_path):
        """Nothing cached: one pass over prompt and answer."""
        requests = [request(0, continuation="red"), request(1, continuation="top left")]
        answers, checkpoint = self.ask(worker, tmp_path / "a.jsonl", requests, ["vanilla"]), worker.checkpoint
        stop = checkpoint.llava.config.eos_token_ids[0]
        for one in requests:
            text = f"{SYSTEM} USER: <image>\n{one.text} ASSISTANT:"
            got = checkpoint.processor(images=one.look(), text=[text], return_tensors="np")
            answer = [*checkpoint.processor.tokenizer(one.continuation, add_special_tokens=False)["input_ids"], stop]
            ids = np.concatenate([got["input_ids"], [answer]], axis=1)
            logged = jax.nn.log_softmax(checkpoint.llava(ids, got["pixel_values"])[0])
            at = range(ids.shape[1] - len(answer) - 1, ids.shape[1] - 1)
            want = -np.mean([logged[i, token] for i, token in zip(at, answer, strict=True)])
            loss, greedy = answers.prediction(one, "vanilla")
            assert loss == pytest.approx(want, abs=1e-4)
            assert greedy == all(logged[i].argmax() == token for i, token in zip(at[:-1], answer[:-1], strict=True))

    def test_a_likelihood_of_the_image_at_a_lower_resolution(self, worker, tmp_path, monkeypatch):
        small = dataclasses.replace(worker.cells["vanilla"], side=2)
        monkeypatch.setattr(worker, "cells", {**worker.cells, "small": small})
        one = request(0, continuation="red")
        answers = self.ask(worker, tmp_path / "a.jsonl", [one], ["vanilla", "small"])
        encoder = worker.batches.encoder
        inputs = encoder([one.read(0)], 1)
        pixels = np.asarray(reduced(inputs.pixel_values, size=2 * worker.model.config.vision.patch_size))
        prompt = worker.model.prompt(**{**inputs.named, "pixel_values": pixels})
        given = [worker.checkpoint.processor.tokenizer(" red", add_special_tokens=False)["input_ids"]]
        ((want, _),) = likelihood.loglikelihoods(worker.model, prompt, given, cuts=(), seed=0)
        assert answers.prediction(one, "small")[0] == pytest.approx(want, abs=1e-4)
        assert abs(answers.prediction(one, "small")[0] - answers.prediction(one, "vanilla")[0]) > 1e-3

    def test_what_is_answered_is_greedy(self, worker, tmp_path):
        """Carved too, and nothing else is."""
        requests = [request(0), request(1)]
        answers = self.ask(worker, tmp_path / "a.jsonl", requests)
        for name in ("vanilla", CARVED):
            texts = [answers.prediction(one, name) for one in requests]
            same, other = (
                [request(i, continuation=before + text) for i, text in enumerate(texts)] for before in ("", "LEAF ")
            )
            found = self.ask(worker, tmp_path / f"{name}.jsonl", [*same, *other], [name])
            assert [found.prediction(one, name)[1] for one in [*same, *other]] == [True, True, False, False]
