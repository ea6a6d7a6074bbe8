"""What a harness asks, apart from the harness: `.ci/lmms` runs lmms-eval itself."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from experiments.core import results
from experiments.core.workers import Alone
from experiments.evaluation.question_asker import QuestionAsker
from experiments.evaluation.settings import Asking
from experiments.lmms import model_args
from experiments.lmms.answers import Answers
from experiments.lmms.requests import Read, Request, batches, options
from models.errors import CommandError
from tests.commands import save_checkpoint
from tests.question_files import noise

CARVED = "tokencarve@2=5"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def asker(model):
    args = model_args.read({"pretrained": str(model), "schedule": CARVED, "batch_size": "2"})
    return QuestionAsker(args.settings, args.asking, max_new_tokens=8)


def request(doc_id=0, text="Where is it?", *, images=1, task="a", **more):
    def look():
        return [noise((60, 40), 10 * doc_id + i) for i in range(images)]

    return Request(task, "test", doc_id, text, look, **{"max_new_tokens": 6} | more)


class TestModelArgs:
    @pytest.mark.parametrize(
        ("given", "name", "methods", "keep"),
        [
            ({}, "vanilla", (), 1.0),
            ({"keep": 128}, "tokencarve", ("tokencarve",), 128),
            ({"keep": "0.222", "method": "divprune"}, "divprune", ("divprune",), 0.222),
            ({"keep": 64, "information": "svd"}, "tokencarve-svd", ("tokencarve-svd",), 64),
            ({"keep": 64, "information": "default", "method": "tokencarve"}, "tokencarve", ("tokencarve",), 64),
        ],
    )
    def test_what_is_asked(self, given, name, methods, keep):
        args = model_args.read(given)
        assert (args.name, args.settings.methods, args.settings.keep) == (name, methods, keep)
        assert args.asking == Asking()  # LLaVA-1.5's way

    def test_schedule(self):
        args = model_args.read({"schedule": '"tome@tower=288 tokencarve@2=128,calibrated"'})
        assert args.settings.schedules == (("tome@tower=288", "tokencarve@2=128,calibrated"),)
        assert args.name == "tome@tower=288 tokencarve@2=128,calibrated"

    def test_all_the_others(self):
        given = {"border": "last", "image_aspect_ratio": "crop", "conversation": "checkpoint", "max_new_tokens": 9}
        more = {"dtype": "bfloat16", "revision": "v1", "seed": 3, "restart": True, "journal": "j", "pretrained": "m"}
        args = model_args.read(given | more | {"batch_size": "4", "device": "cuda", "max_batch_size": None})
        assert dataclasses.asdict(args.asking) == given
        got = args.settings
        assert (got.dtype, got.revision, got.seed, got.restart, got.model) == ("bfloat16", "v1", 3, True, "m")
        assert (str(got.out), got.batch_size) == ("j", 4)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"kep": 3}, "there is no kep"),
            ({"keep": 0}, "keep=0: "),
            ({"batch_size": "auto"}, "batch_size=auto: "),
            ({"border": "no"}, "expected one of keep, last, drop"),
            ({"restart": "perhaps"}, "restart=perhaps"),
            ({"method": "fastv"}, "needs keep"),
            ({"schedule": CARVED, "keep": 3}, "schedule says all"),
            ({"keep": 3, "method": "fastv", "information": "svd"}, "not for fastv"),
        ],
    )
    def test_what_there_is_not(self, given, said):
        with pytest.raises(CommandError, match=said):
            model_args.read(given)


class TestOptions:
    def test_they_are_read_and_left_alone(self):
        given = {"until": ["ASSISTANT:"], "max_new_tokens": 1024, "temperature": 0.2, "image_aspect_ratio": "original"}
        before = json.dumps(given)
        assert options(given) == {"max_new_tokens": 1024, "until": ("ASSISTANT:",)}
        assert json.dumps(given) == before

    def test_the_harness_speaking_for_a_task_is_no_wish(self):
        assert options({"until": ["\n\n"]}, max_new_tokens=7) == {"max_new_tokens": 7, "until": ()}
        assert options({"until": "\n"}) == {"max_new_tokens": 128, "until": ("\n",)}

    def test_an_answer_ends_at_the_first_of_them(self):
        assert request(until=("END", "STOP")).ended("so STOP or END") == "so"
        assert request(until=("END",)).ended("so it is") == "so it is"


class TestBatches:
    def test_like_with_like(self):
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

    def test_keys(self):
        ones = [request(), request(1), request(text="x"), request(max_new_tokens=7), request(continuation="a")]
        assert len({one.key for one in ones}) == 5
        assert request().key == request(images=2, until=("x",)).key  # what is said is the same


def test_what_cannot_be_seen_is_said():
    def broken():
        raise OSError("truncated\nfile")

    found = Read.of(
        [Request("a", "test", 0, "?", broken), Request("a", "test", 1, "?", lambda: ["film.mp4"]), request(2)],
        [0, 1, 2],
    )
    with pytest.raises(CommandError, match=r"cannot be read \(OSError: truncated file\)"):
        found.sample(0)
    with pytest.raises(CommandError, match="it shows str"):
        found.sample(1)
    assert found.sample(2).images[0].size == (60, 40)


class TestAnswers:
    def ask(self, asker, path, requests, names=("vanilla", CARVED)):
        answers = Answers(Alone(asker), results.Journal(path, {"a": 1}), batch_size=2)
        with tqdm(total=len(requests), file=io.StringIO()) as bar:
            answers.ask(requests, names, bar)
            assert bar.n == len({one.key for one in requests})
        return answers

    def test_they_are_those_of_the_model_asked_alone(self, asker, model, tmp_path):
        """Two images in one question, none in another."""
        requests = [request(0), request(1, images=2), request(2, "What is 2?", images=0)]
        answers = self.ask(asker, tmp_path / "a.jsonl", requests)
        checkpoint, said = asker._checkpoint, set()
        for one in requests:
            images = one.look()
            text = f"{SYSTEM} USER: {'<image>' * len(images)}{one.text} ASSISTANT:".replace("<image>", "<image>\n")
            got = checkpoint.processor(images=images or None, text=[text], return_tensors="np")
            for name, carve in (("vanilla", None), (CARVED, 5)):
                tokens = checkpoint.llava.generate(**got, max_new_tokens=6, carve=carve)
                assert answers.said(one, name) == checkpoint.decode(tokens)[0]
                said.add(answers.said(one, name))
        assert len(said) > 3

    def test_an_interruption_costs_one_batch(self, asker, tmp_path, monkeypatch):
        requests, calls, original = [request(i) for i in range(5)], [], QuestionAsker.answer
        whole = self.ask(asker, tmp_path / "whole.jsonl", requests)

        def answer(self, read, part, **options):
            calls.append(list(part))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(self, read, part, **options)

        monkeypatch.setattr(QuestionAsker, "answer", answer)
        with pytest.raises(KeyboardInterrupt):
            self.ask(asker, tmp_path / "a.jsonl", requests)
        again = self.ask(asker, tmp_path / "a.jsonl", requests)
        assert calls == [[0, 1], [2, 3], [2, 3], [4]]
        assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        assert [again.said(one, CARVED) for one in requests] == [whole.said(one, CARVED) for one in requests]

    def test_another_method_costs_its_own_work_alone(self, asker, tmp_path, monkeypatch):
        requests, asked, original = [request(i) for i in range(2)], [], QuestionAsker.answer
        self.ask(asker, tmp_path / "a.jsonl", requests, ["vanilla"])

        def answer(self, *args, only, **options):
            asked.append(only)
            return original(self, *args, only=only, **options)

        monkeypatch.setattr(QuestionAsker, "answer", answer)
        answers = self.ask(asker, tmp_path / "a.jsonl", requests)
        assert asked == [[CARVED]]
        assert all(answers.known(one, name) for one in requests for name in ("vanilla", CARVED))

    def test_others_journals_count(self, asker, tmp_path):
        one = request()
        self.ask(asker, tmp_path / "a.jsonl", [one])
        others = results.Journal(tmp_path / "a.jsonl", {"a": 1}).entries
        answers = Answers(Alone(asker), results.Journal(tmp_path / "b.jsonl", {}), batch_size=2, others=others)
        assert answers.known(one, CARVED)

    def test_what_cannot_be_asked_does_not_stop_its_neighbour(self, asker, tmp_path):
        bad = Request("a", "test", 0, "Where is it?", lambda: [1 / 0])
        answers = self.ask(asker, tmp_path / "a.jsonl", [bad, request(1)])
        assert answers.said(bad, CARVED) is None
        assert "ZeroDivisionError" in answers.errors[bad.key]
        assert answers.said(request(1), CARVED)
        again = Answers(Alone(asker), results.Journal(tmp_path / "a.jsonl", {"a": 1}), batch_size=2)
        assert again.errors == answers.errors


SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class TestLikelihood:
    def test_it_is_that_of_the_whole_sequence(self, asker):
        """Nothing cached: one pass over prompt and answer."""
        words, requests = ["red", "top left"], [request(0), request(1)]
        found = asker.loglikelihoods(Read.of(requests, [0, 1]), [0, 1], continuations=words, only=["vanilla"])
        checkpoint = asker._checkpoint
        stop = checkpoint.llava.config.eos_token_ids[0]
        for one, word, record in zip(requests, words, found, strict=True):
            text = f"{SYSTEM} USER: <image>\n{one.text} ASSISTANT:"
            got = checkpoint.processor(images=one.look(), text=[text], return_tensors="np")
            answer = [*checkpoint.processor.tokenizer(word, add_special_tokens=False)["input_ids"], stop]
            ids = np.concatenate([got["input_ids"], [answer]], axis=1)
            logged = jax.nn.log_softmax(checkpoint.llava(ids, got["pixel_values"])[0])
            at = range(ids.shape[1] - len(answer) - 1, ids.shape[1] - 1)
            want = -np.mean([logged[i, token] for i, token in zip(at, answer, strict=True)])
            loss, greedy = record["said"]["vanilla"]
            assert loss == pytest.approx(want, abs=1e-4)
            assert greedy == all(logged[i].argmax() == token for i, token in zip(at[:-1], answer[:-1], strict=True))

    def test_what_is_said_is_greedy(self, asker):
        """Carved too, and nothing else is."""
        requests = [request(0), request(1)]
        read = Read.of(requests, [0, 1])
        said = [record["said"] for record in asker.answer(read, [0, 1], max_new_tokens=4)]
        for name in ("vanilla", CARVED):
            texts = [one[name] for one in said]
            found = asker.loglikelihoods(read, [0, 1], continuations=texts, only=[name])
            assert [record["said"][name][1] for record in found] == [True, True]
            found = asker.loglikelihoods(read, [0, 1], continuations=[f"LEAF {text}" for text in texts], only=[name])
            assert [record["said"][name][1] for record in found] == [False, False]


def test_images_are_pil_and_rgb():
    one = Request("a", "test", 0, "?", lambda: [None, Image.new("L", (3, 4))])
    assert [image.mode for image in Read.of([one], [0]).sample(0).images] == ["RGB"]
