"""Compressed images for serving engines: what a server gets is what the engine's own decoder would."""

import base64
import http.server
import io
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from experiments import embed
from experiments.core import loading
from experiments.data.image_files import open_image
from models.engine.notation import Cut
from models.errors import CommandError
from models.llava import Llava
from models.serving import Answer, ask, before_decoder, image_embeds, plugin
from models.serving.client import as_file
from models.serving.request import of_config
from tests import families, tiny
from tests.commands import VISUAL, failure
from tokencarve_jax import COMPRESSORS

KEEP = 6
QUESTION = "Is there a blue star in the image?"
REFUSALS = {  # as vLLM 0.32 words them
    "no embeds": (400, "You must set `--enable-mm-embeds` to input `image_embeds` (parameter=image_embeds)"),
    "width": (400, "Image embedding hidden dimension mismatch: got 24, but model expects 128."),
}


@pytest.fixture(scope="module", params=["llava-1.5-7b", "llava-v1.6-mistral-7b"])
def family(request, tmp_path_factory):
    """Ours, transformers', and rows of one and two photographs of different shape."""
    folder = tmp_path_factory.mktemp("family") / "hf"
    theirs = families.make(request.param, folder)
    return Llava.from_pretrained(folder), theirs, families.batch(theirs.config, (1, 2), (9, 30))


def features(theirs, inputs):
    given = {key: torch.tensor(value) for key, value in inputs.items() if key in ("pixel_values", "image_sizes")}
    with torch.no_grad():
        found = theirs.model.get_image_features(**given)
    return [rows.numpy() for rows in getattr(found, "pooler_output", found)]


def test_all_tokens_are_transformers_features(family):
    ours, theirs, inputs = family
    got, want = image_embeds(ours, **inputs, method="uniform", keep=1.0), features(theirs, inputs)
    assert len(got) == 3
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_the_rows_give_transformers_the_logits_of_our_own_cut(family):
    """Embeddings in the place of each image, in a prompt that is shorter by what was dropped, as a server makes it."""
    ours, theirs, inputs = family
    images = iter(image_embeds(ours, **inputs, method="visionzip", keep=KEEP))
    cut = Cut("input", COMPRESSORS["visionzip"], KEEP, scope="image")
    got = ours.prefill(ours.prompt(**inputs, per_image=True), carve=cut).logits
    placeholder, table = theirs.config.image_token_id, theirs.get_input_embeddings()
    for ids, mask, logits in zip(inputs["input_ids"], inputs["attention_mask"], np.asarray(got), strict=True):
        ids, parts = ids[mask.astype(bool)], []
        for place, token in enumerate(ids):
            if token != placeholder:
                parts.append(table(torch.tensor([token])))
            elif ids[place - 1] != placeholder:
                rows = next(images)
                assert rows.shape == (KEEP, ours.config.text.hidden_size)
                parts.append(torch.tensor(np.asarray(rows)))
        with torch.no_grad():
            want = theirs(inputs_embeds=torch.cat(parts)[None]).logits[0, -1].numpy()
        np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4)
    assert next(images, None) is None


def test_images_that_have_fewer_tokens_keep_theirs(family):
    ours, theirs, inputs = family
    sizes = [len(rows) for rows in features(theirs, inputs)]
    keep = max(sizes) - 1
    got = image_embeds(ours, **inputs, method="uniform", keep=keep)
    assert [len(rows) for rows in got] == [min(size, keep) for size in sizes]
    assert (len(set(sizes)) > 1) != ours.square


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_keep_their_dtype_and_a_file_their_values(dtype):
    model, (ids, pixels, _) = tiny.make_llava(dtype=dtype), tiny.make_inputs(texts=(4,), images=(1,))
    (rows,) = image_embeds(model, ids, pixels, method="tome" if dtype == jnp.float32 else "random", keep=18)
    assert (rows.shape, rows.dtype) == ((18, 40), dtype)
    again = np.load(io.BytesIO(as_file(rows)), allow_pickle=False)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, rows.astype(jnp.float32))


def test_which_methods_can_be_had():
    refused = {}
    for name, compressor in COMPRESSORS.items():
        try:
            before_decoder(compressor, KEEP)
        except ValueError as error:
            refused[name] = str(error)
    had = set(COMPRESSORS) - set(refused)
    assert {name for name, row in COMPRESSORS.items() if row.at != "decoder"} - had == {"mmtok", "trim"}
    assert had & {name for name, row in COMPRESSORS.items() if row.at == "decoder"} == {"norm", "random"}
    assert "fastv needs query_attention: what is asked, or a layer of the decoder" in refused["fastv"]
    assert "mmtok needs text, text_valid" in refused["mmtok"]


def test_what_is_imported():
    """vLLM imports the plugin in all its processes, and what cuts in those of a LLaVA, where there is no Flax."""
    code = """if True:
        import sys
        import models.serving.plugin
        first = {"jax", "numpy"} & set(sys.modules)
        sys.modules["flax"] = None
        import models.nn.tower_reads, models.serving.request
        del sys.modules["flax"]
        models.serving.image_embeds, models.serving.ask
        sys.exit(str(first or {"torch", "vllm", "sglang"} & set(sys.modules) or ""))"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def of(carve, tower="clip_vision_model"):
    return of_config(SimpleNamespace(carve=carve, vision_config=SimpleNamespace(model_type=tower)))


def test_what_a_config_asks_for():
    assert of_config(SimpleNamespace()) is None
    assert of(None, "pixtral") is None
    assert of(["visionzip", 64]) == of(("visionzip", 64)) == Cut("input", COMPRESSORS["visionzip"], 64, scope="image")


@pytest.mark.parametrize(
    ("carve", "line"),
    [
        (["fastv", 64], "carve 'fastv': fastv needs query_attention: what is asked, or a layer of the decoder"),
        (["mmtok", 64], "carve 'mmtok': mmtok needs text, text_valid"),
        (["tome", 64], "carve 'tome' merges in the tower's blocks"),
        (["nosuch", 64], "carve 'nosuch': no method is named 'nosuch'"),
        (["visionzip", 0], "carve is ['visionzip', 0]; expected a registered method and how many tokens"),
        (["visionzip", True], 'such as ["visionzip", 64]'),
        (["visionzip", 0.5], "a count of at least 1"),
        (["visionzip"], "carve is ['visionzip']"),
        ([64, "visionzip"], "carve is [64, 'visionzip']"),
        ("visionzip", "carve is 'visionzip'"),
    ],
)
def test_what_the_plugin_refuses(carve, line):
    with pytest.raises(ValueError, match="carve") as error:
        of(carve)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_plugin_knows_clip_only():
    with pytest.raises(ValueError, match="the tower is a siglip_vision_model; expected CLIP's"):
        of(["divprune", 64], "siglip_vision_model")


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu", "0.33.0", "0.3.2", "1.32.0"])
def test_the_plugin_is_for_the_versions_that_were_tried(monkeypatch, version):
    classes = {}
    engine = SimpleNamespace(__version__=version, ModelRegistry=SimpleNamespace(register_model=classes.__setitem__))
    monkeypatch.setitem(sys.modules, "vllm", engine)
    if version.startswith("0.32."):
        plugin.register()
        assert set(classes) == {"LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"}
    else:
        with pytest.raises(RuntimeError, match=rf"for vLLM 0.32, and this is {version}; install .* VLLM_PLUGINS= in"):
            plugin.register()
        assert classes == {}


@pytest.fixture
def server():
    """A server in this process: what it was asked, and what it says, a status and the content."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, json.dumps({"data": [{"id": "some/model"}]}))

        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.reply(*says)

        def reply(self, status, content):
            if status:  # 0 ends the connection without a word
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content.encode())

        def log_message(self, *_):
            pass

    asked, says = [], [200, ""]
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}", asked, says
    serving.shutdown()
    serving.server_close()
    thread.join()


GOOD = json.dumps(
    {
        "choices": [{"message": {"content": " yes"}}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 2},
    }
)


def test_what_a_server_is_asked(server):
    url, asked, says = server
    says[:] = [200, GOOD]
    images = [np.random.default_rng(0).normal(size=(rows, 24)).astype(np.float32) for rows in (5, 3)]
    for address in (url, f"{url}/", f"{url}/v1"):
        assert ask(address, images, QUESTION, max_new_tokens=7) == Answer("yes", 20, 2)
    path, body = asked[-1]
    assert {path for path, _ in asked} == {"/v1/chat/completions"}
    assert (path, body["model"], body["max_tokens"]) == ("/v1/chat/completions", "some/model", 7)
    *parts, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": QUESTION}
    for part, rows in zip(parts, images, strict=True):
        assert part["type"] == "image_embeds"
        np.testing.assert_array_equal(np.load(io.BytesIO(base64.b64decode(part["image_embeds"]))), rows)


@pytest.mark.parametrize(
    ("says", "line"),
    [
        *(
            ([status, json.dumps({"error": {"message": f"{said}\n"}})], f"refuses with status {status}: {said}")
            for status, said in REFUSALS.values()
        ),
        ([500, "Internal Server Error"], "refuses with status 500: Internal Server Error"),
        ([500, "x" * 10_000], "x" * 300),
        ([0, ""], "no server answers there"),
        ([200, "<html>"], "does not answer as an OpenAI-compatible server does"),
        ([200, "[]"], "does not answer as an OpenAI-compatible server does"),
    ],
)
def test_what_goes_wrong_is_one_line(server, says, line):
    url, _, answers = server
    answers[:] = says
    with pytest.raises(CommandError) as error:
        ask(url, [np.ones((2, 3))], QUESTION, max_new_tokens=1)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two photographs of different shape."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / "wide.png", folder / "tall.jpg"]
    for path, photograph in zip(paths, families.photographs()[::2], strict=True):
        photograph.save(path)
    return paths


def expected(folder, images):
    checkpoint, found = loading.load(str(folder), dtype="float32"), []
    for image in images:
        inputs = checkpoint.encode([[open_image(image)]], [""])
        found += image_embeds(checkpoint.llava, inputs.input_ids, inputs.pixel_values, method="visionzip", keep=KEEP)
    return found


def test_the_command_writes_a_file_for_each_image(llava_folder, images, tmp_path, capsys):
    argv = [f"--model={llava_folder}", f"--keep={KEEP}", f"--out={tmp_path}/new", *map(str, images)]
    assert embed.main(argv) == 0
    out = capsys.readouterr().out
    for image, rows in zip(images, expected(llava_folder, images), strict=True):
        file = tmp_path / "new" / f"{image.stem}.npy"
        np.testing.assert_array_equal(np.load(file, allow_pickle=False), rows)
        assert f"{file}  {KEEP} x 24  of {image}\n" in out
    assert len(list(file.parent.iterdir())) == 2


def test_the_command_asks_a_server(llava_folder, images, server, tmp_path, monkeypatch, capsys):
    url, asked, says = server
    monkeypatch.chdir(tmp_path)
    argv = [f"--model={llava_folder}", f"--keep={KEEP}", *map(str, images), f"--send={url}", f"--prompt={QUESTION}"]
    says[:] = [200, GOOD]
    assert embed.main(argv) == 0
    assert capsys.readouterr().out == "yes\n\n20 prompt tokens, 2 of the answer\n"
    *parts, _ = asked[0][1]["messages"][0]["content"]
    for part, rows in zip(parts, expected(llava_folder, images), strict=True):
        np.testing.assert_array_equal(np.load(io.BytesIO(base64.b64decode(part["image_embeds"]))), rows)
    assert list(tmp_path.iterdir()) == []
    says[:] = [400, json.dumps({"error": {"message": REFUSALS["no embeds"][1]}})]
    assert "You must set `--enable-mm-embeds`" in failure(embed.main, argv, capsys)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--method=fastv"], "--method: fastv needs query_attention: what is asked, or a layer of the decoder"),
        (["--method=nosuch"], "no method is named 'nosuch'"),
        ([f"--keep={VISUAL + 1}"], f"must be in 1..{VISUAL}"),
        (["--send=http://127.0.0.1:9"], "--send and --prompt go together"),
        (["--prompt=x"], "--send and --prompt go together"),
        (["--send=localhost", "--prompt=x"], "'localhost' is no address of a server"),
        (["--send=http://127.0.0.1:9", "--prompt=x"], "http://127.0.0.1:9: no server answers there"),
        (["{image}"], "two of the images have one name"),
        (["nosuch.png"], "nosuch.png"),
    ],
)
def test_what_the_command_refuses(llava_folder, images, tmp_path, capsys, flags, line):
    argv = [f"--model={llava_folder}", f"--out={tmp_path}/new", str(images[0])]
    assert line in failure(embed.main, [*argv, *(flag.format(image=images[0]) for flag in flags)], capsys)
    assert not (tmp_path / "new").exists()
