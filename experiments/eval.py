"""Measure what carving costs in accuracy and gains in speed and memory.

Asks a LLaVA three questions about each of some held-out scenes (reading, spatial, hallucination): with all visual
tokens (vanilla), carved by TokenCarve, and, as a control, with as many tokens left at random; or by other methods
(--methods), such as TokenCarve with one of its parts off. Prints one table, and writes results.json with every answer,
table.txt and one picture per family of questions.

A run that was interrupted goes on where it stopped when the same command is given again. Several processes can
share the questions (--coordinator); the answers are those of one process.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from experiments import cli, loading, methods, pictures, processes, results, summary
from experiments.cli import CommandError
from experiments.scenes import FAMILIES, Question, Scene, make_scene
from models.engine.model import ROOM_BUCKET
from models.engine.plan import Carve
from models.engine.prompt import round_up
from tokencarve_jax import plan

_EXAMPLES = """examples:
  python -m experiments.eval                              the shipped model, 128 of 576 visual tokens left
  python -m experiments.eval --keep=64                    64 left
  python -m experiments.eval --keep=0.111 --limit=30      30 scenes only, for a quick look
  python -m experiments.eval --methods tokencarve tokencarve-no-merge tokencarve-attention-only
                                                          what merging and the information score are worth
  python -m experiments.eval --model=path/to/llava --dtype=bfloat16 --out=results/mine
  python -m experiments.eval --coordinator=localhost:1234 --processes=2 --process=0    and =1 in another terminal
"""
MAX_NEW_TOKENS = 8
TIMED_BATCHES, REPEATS = 10, 2  # prefill latency is measured on the first batches
ROOM = round_up(MAX_NEW_TOKENS, ROOM_BUCKET)  # what `generate` leaves in the cache


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same for all batches.

    Attributes:
      checkpoint: model and processor.
      methods: what to compare, by name, as `carve` arguments.
      batch_size: questions at a time.
      seed: of scenes and of the random control.
    """

    checkpoint: loading.Checkpoint
    methods: dict[str, Carve]
    batch_size: int
    seed: int


@functools.lru_cache(maxsize=64)
def _scene(index: int, seed: int) -> Scene:
    return make_scene("test", index, seed, questions=len(FAMILIES))


def sample(index: int, seed: int) -> tuple[Scene, Question]:
    """Question number `index`: three follow each other about one scene."""
    scene = _scene(index // len(FAMILIES), seed)
    return scene, scene.questions[index % len(FAMILIES)]


def encode(run: Run, indices: Sequence[int]) -> loading.Inputs:
    """A batch of full size: the last question is repeated where there are fewer, so that nothing compiles anew."""
    filled = [*indices, *[indices[-1]] * (run.batch_size - len(indices))]
    pairs = [sample(index, run.seed) for index in filled]
    return run.checkpoint.encode([[scene.image] for scene, _ in pairs], [question.text for _, question in pairs])


def answer(run: Run, inputs: loading.Inputs, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Ask every method; one record per question."""
    said = {}
    for name, carve in run.methods.items():
        tokens = run.checkpoint.llava.generate(
            inputs.input_ids,
            inputs.pixel_values,
            attention_mask=inputs.attention_mask,
            max_new_tokens=MAX_NEW_TOKENS,
            carve=carve,
            seed=_draw(run, indices),
        )
        said[name] = run.checkpoint.decode(tokens)
    records = []
    for row, index in enumerate(indices):
        _, question = sample(index, run.seed)
        records.append(
            {
                "sample": index,
                "scene": index // len(FAMILIES),
                "family": question.family,
                "question": question.text,
                "answer": question.answer,
                "said": {name: texts[row] for name, texts in said.items()},
            }
        )
    return records


def _draw(run: Run, indices: Sequence[int]) -> int:
    """A seed of its own for each batch."""
    return (run.seed * 1_000_003 + indices[0]) % 2**32


def time_prefill(run: Run, inputs: loading.Inputs, *, warm: bool) -> dict[str, Any]:
    """Seconds of prefill with the input on the device, the methods taking turns, so that noise hits all alike.

    Args:
      run: what to compare.
      inputs: a batch.
      warm: everything is compiled.

    Returns:
      Seconds per method, bytes of the cache per question, and the first calls' seconds unless `warm`.
    """
    llava = run.checkpoint.llava
    prompt = jax.device_put(llava.prompt(inputs.input_ids, inputs.pixel_values, inputs.attention_mask))
    first, seconds = {}, {name: list[float]() for name in run.methods}
    held = {}
    for repeat in range(REPEATS if warm else REPEATS + 1):
        for name, carve in run.methods.items():
            start = time.perf_counter()
            prefilled = jax.block_until_ready(llava.prefill(prompt, carve=carve, room=ROOM))
            took = time.perf_counter() - start
            held[name] = prefilled.cache.nbytes / run.batch_size
            if repeat == 0 and not warm:
                first[name] = took
            else:
                seconds[name].append(took)
    return {"prefill_s": seconds, "cache_bytes": held} | ({} if warm else {"first_call_s": first})


def batches(total: int, size: int) -> Iterator[range]:
    """0..total in runs of `size`."""
    return (range(start, min(start + size, total)) for start in range(0, total, size))


def measure(run: Run, total: int, journal: results.Journal, group: processes.Group) -> None:
    """Answer and time what the journal does not hold yet of this process's batches, and tell the answers."""
    known = {record["sample"]: record for entry in journal.entries for record in entry["samples"]}
    timed = {entry["batch"] for entry in journal.entries if "prefill_s" in entry}
    warm = False
    own = [(n, part) for n, part in enumerate(batches(total, run.batch_size)) if group.owner(n) == group.index]
    size = sum(len(part) for _, part in own)
    with tqdm(total=size, desc="compiling", unit=" questions", file=sys.stderr, disable=None) as bar:
        for number, indices in own:
            group.check()
            if not known.keys() >= set(indices):
                inputs = encode(run, indices)
                entry: dict[str, Any] = {"batch": number}
                if group.index == 0 and number < TIMED_BATCHES * group.count and number not in timed:
                    entry |= time_prefill(run, inputs, warm=warm)
                    warm = True
                entry["samples"] = answer(run, inputs, indices)
                journal.add(entry)
                known |= {record["sample"]: record for record in entry["samples"]}
                bar.set_description("asking")
            group.tell(f"batch {number}", [known[index] for index in indices])
            bar.update(len(indices))


def save_pictures(run: Run, records: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """One picture per family: its first question, and what the first method leaves."""
    shown = next(name for name in run.methods if name != summary.BASELINE)
    llava, chosen = run.checkpoint.llava, {record["family"]: record for record in reversed(records)}
    paths = []
    families = [family for family in FAMILIES if family in chosen]
    for part in batches(len(families), run.batch_size):
        own = [chosen[families[i]] for i in part]
        inputs = encode(run, [record["sample"] for record in own])
        prompt = llava.prompt(inputs.input_ids, inputs.pixel_values, inputs.attention_mask)
        prefilled = llava.prefill(prompt, carve=run.methods[shown], room=ROOM)
        images = run.checkpoint.seen(inputs.pixel_values)
        for row, record in enumerate(own):
            views = pictures.views_of([images[row]], llava.config, prefilled, row)
            lines = [
                (f"answer with all {llava.config.tokens_per_image} visual tokens", record["said"][summary.BASELINE]),
                (f"answer with {len(views[0].survivors)}, by {shown}", record["said"][shown]),
                ("right answer", record["answer"]),
            ]
            paths.append(out / f"{record['family']}.png")
            pictures.save(pictures.draw(views, question=record["question"], lines=lines), paths[-1])
    return paths


def evaluate(flags: argparse.Namespace, group: processes.Group) -> None:
    """Run the comparison that the flags ask for; process 0 writes and prints it."""
    out = flags.out or Path("results") / f"eval-{flags.keep}"
    if out.exists() and not out.is_dir():
        raise CommandError(f"--out {out}: there is a file of that name")
    checkpoint = loading.load(flags.model, dtype=flags.dtype, revision=flags.revision)
    if not checkpoint.llava.square:
        raise CommandError(f"{flags.model} is a LLaVA-NeXT; the scenes are for models that see an image as one tile")
    run = Run(checkpoint, methods.to_compare(checkpoint.llava, flags.keep, flags.methods), flags.batch_size, flags.seed)
    total = flags.limit * len(FAMILIES)
    settings = {
        "model_sha256": loading.checksum(checkpoint.folder),
        "keep": flags.keep,
        "methods": list(run.methods),
        "dtype": flags.dtype,
        "batch_size": flags.batch_size,
        "seed": flags.seed,
        "max_new_tokens": MAX_NEW_TOKENS,
        "room": ROOM,
        "processes": group.count,
        "versions": results.versions(),
        "machine": results.machine(),
        "code_sha256": results.code_checksum(),
    }
    name = f"answers.{group.index}.jsonl" if group.index else "answers.jsonl"
    journal = results.Journal(out / name, settings, restart=flags.restart)
    # Their machines may differ, and where they write.
    group.agree({key: value for key, value in settings.items() if key != "machine"} | {"limit": flags.limit})
    if journal.entries:
        print(f"Going on from {journal.path}; --restart measures anew.", file=sys.stderr)
    measure(run, total, journal, group)
    if group.index:
        return
    numbers = range(-(-total // run.batch_size))
    records = [record for number in numbers for record in group.hear(group.owner(number), f"batch {number}")]
    visual = checkpoint.llava.config.tokens_per_image
    tokens = dict.fromkeys(run.methods, plan(visual, flags.keep).kept) | {summary.BASELINE: visual}
    rows = summary.rows(records, tokens=tokens, entries=journal.entries)
    text = summary.table(rows, scenes=flags.limit, settings=settings)
    saved = save_pictures(run, records, out)
    report = {
        "command": ["python", "-m", "experiments.eval", *flags.argv],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": flags.model,
        "scenes": flags.limit,
        "settings": settings,
        "methods": rows,
        "samples": records,
    }
    results.write_json(out / "results.json", report)
    results.write_text(out / "table.txt", text + "\n")
    print(text)
    print(f"\nAll answers and settings: {out / 'results.json'}. Pictures: {', '.join(map(str, saved))}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, run, and say what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(prog="python -m experiments.eval", description=__doc__, epilog=_EXAMPLES)
    cli.add_keep_flag(parser, default=0.222)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["tokencarve", "random"],
        metavar="NAME",
        help=f"what to compare with all tokens, of: {', '.join(methods.choices())}; or "
        "your own, as package.module:object or path/to/file.py:object (default: tokencarve random)",
    )
    cli.add_model_flags(parser)
    parser.add_argument(
        "--limit",
        type=cli.positive,
        default=300,
        metavar="SCENES",
        help="how many scenes; each is asked three questions (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=cli.positive, default=6, metavar="QUESTIONS", help="at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=cli.seed, default=0, help="of the scenes and of the random control (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where everything is written (default: results/eval-KEEP)"
    )
    parser.add_argument("--restart", action="store_true", help="forget what FOLDER holds of an earlier run")
    processes.add_flags(parser)
    parser.set_defaults(argv=list(argv))
    return cli.run(
        processes.together(evaluate), parser, argv, interrupted="interrupted; the same command goes on from here"
    )


if __name__ == "__main__":
    sys.exit(main())
