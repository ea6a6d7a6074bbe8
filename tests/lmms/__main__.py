"""lmms-eval's evaluator on a local task, against answers of `experiments.eval`: `python -m tests.lmms FOLDER`.

102 questions on the shipped model, vanilla and carved: through `experiments.reproduce`, lmms-eval's own command, and
two processes that torchrun starts. All give the same scores, to the last digit; the protocol's groups are counted anew.
"""

import contextlib
import io
import json
import os
import string
import subprocess
import sys
import time
from pathlib import Path

from experiments import eval as evaluation
from experiments import reproduce
from experiments.lmms import sets
from tests.lmms.local import CHOICE, TASK, make_task
from tests.lmms.prompts import AROUND, PROMPTS, shown

ROOT = Path(__file__).parents[2]
MODEL, KEEP, BATCH = str(ROOT / "experiments" / "tiny"), 128, 6
LIMIT_S = 600  # of one command; far more than is needed
CARVED = f"tokencarve@2={KEEP}"


def by_eval(folder: Path, task: Path) -> dict[str, list[str]]:
    """Answers in the order of the questions, by method."""
    out = folder / "eval.jsonl"
    flags = [f"--model={MODEL}", f"--keep={KEEP}", f"--batch-size={BATCH}", "--methods=tokencarve"]
    files = [f"--questions={task / 'questions.jsonl'}", f"--images={task}", f"--answers={out}"]
    assert evaluation.main([*flags, *files, "--conv-mode=checkpoint", "--max-new-tokens=8"]) == 0
    texts = {}
    for method in ("vanilla", "tokencarve"):
        lines = out.with_name(f"eval-{method}.jsonl").read_text().splitlines()
        texts[method] = [json.loads(line)["text"] for line in lines]
    return texts


def marked(rows: list[dict], texts: list[str]) -> list[bool]:
    """By a rule of our own, which is not lmms-eval's code."""

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c not in string.punctuation)

    return [plain(text) == plain(row["answer"]) for row, text in zip(rows, texts, strict=True)]


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


def reproduced(folder: Path, task: Path, *more: str) -> tuple[dict, dict]:
    """Scores, and all files that the command leaves, but for the date in one of them."""
    out = folder / "reproduce"
    flags = [f"--model={MODEL}", f"--keep={KEEP}", f"--batch-size={BATCH}", "--information=subspace", f"--out={out}"]
    where = [f"--include={task}", "--tasks", TASK, CHOICE, "--conv-mode=checkpoint"]
    assert reproduce.main([*flags, *where, *more]) == 0
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    report = json.loads(files.pop("results.json"))
    return report["scores"], files | {"results.json": {name: report[name] for name in report if name != "date"}}


def judged(folder: Path, task: Path, rows: list[dict], right: dict[str, list[bool]]) -> None:
    """The protocol on the first questions: scores of the whole set, and of groups of questions, by our own rule."""
    out, limit = folder / "protocol", 12
    flags = [f"--model={MODEL}", f"--keep={KEEP}", f"--batch-size={BATCH}", f"--limit={limit}", f"--out={out}"]
    where = [f"--include={task}", "--tasks", TASK, "--conv-mode=checkpoint"]
    assert reproduce.main(["--protocol", "--methods=random", *flags, *where]) == 0
    report = json.loads((out / "results.json").read_text())
    named = {"vanilla": "vanilla", f"tokencarve ({CARVED})": "tokencarve"}
    for cell, method in named.items():
        check(f"protocol, {cell}", report["scores"][TASK][cell]["exact_match"], share(right[method][:limit]))
    lines = [json.loads(line)["predictions"] for line in (out / f"{TASK}.jsonl").read_text().splitlines()]
    own = {cell: marked(rows[:limit], [line[cell] for line in lines]) for cell in lines[0]}
    (small,) = (marks for cell, marks in own.items() if cell.startswith("downsampled"))
    hard = [i for i in range(limit) if own["vanilla"][i] and not small[i]]
    row = next(row for row in report["protocol"]["sets"][TASK]["groups"] if row["method"] == "tokencarve")
    check("protocol, hard questions", row["hard"]["of"], len(hard))
    check("of them, carved", row["hard"]["right"], sum(own[f"tokencarve ({CARVED})"][i] for i in hard))
    assert all(0 <= row["lost"] <= 1 for row in report["protocol"]["sets"][TASK]["layers"])


def by_command(start: list[str], folder: Path, task: Path, args: str, *more: str) -> float:
    """The score in the file that lmms-eval's own command leaves."""
    out = folder / f"out-{time.monotonic_ns()}"
    args = f"pretrained={MODEL},conversation=checkpoint,journal={out / 'journal'},{args}"
    argv = ["eval", "--model", "tokencarve_jax", "--model_args", args, "--tasks", TASK, "--include_path", str(task)]
    end = ["--batch_size", str(BATCH), "--output_path", str(out), *more]
    done = subprocess.run([*start, *argv, *end], cwd=folder, capture_output=True, text=True, env=env(), timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    found = list(out.rglob("*_results.json"))
    assert len(found) == 1, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(found[0].read_text())["results"][TASK]["exact_match,none"]


def env() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}


def planned() -> None:
    """The plan of the paper's table, with every prompt as LLaVA has it; what a judge or a login is missing for."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert reproduce.main(["--dry-run"]) == 0
    plan = out.getvalue()
    assert plan.count(shown(AROUND)) == 1
    for name, prompt in PROMPTS.items():
        assert f"a sample's prompt:\n{shown(prompt)}" in plan, name
    assert PROMPTS.keys() == sets.SETS.keys()
    assert plan.count("skipped: its answers are marked by a judge") == (0 if os.environ.get(sets.JUDGE) else 2)
    print("a plan with all prompts", flush=True)


def check(what: str, got: object, want: object) -> None:
    print(f"{what}: {got}", flush=True)
    assert got == want, f"{what}: {got} and not {want}"


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    planned()
    rows = make_task(task := folder / "task", 34)
    predictions = by_eval(folder, task)
    right = {method: marked(rows, texts) for method, texts in predictions.items()}
    assert 0.5 < share(right["tokencarve"]) < share(right["vanilla"]) < 1, "too easy or too hard to tell anything"

    scores, files = reproduced(folder, task)
    check("reproduce, vanilla", scores[TASK]["vanilla"]["exact_match"], share(right["vanilla"]))
    check("reproduce, carved", scores[TASK][CARVED]["exact_match"], share(right["tokencarve"]))
    lines = [json.loads(line)["predictions"] for line in files[f"{TASK}.jsonl"].decode().splitlines()]
    assert [line["vanilla"] for line in lines] == predictions["vanilla"]
    assert [line[CARVED] for line in lines] == predictions["tokencarve"]
    # What is likelier is what is answered, where there are two answers.
    for method, name in (("vanilla", "vanilla"), ("tokencarve", CARVED)):
        choice = [ok for ok, row in zip(right[method], rows, strict=True) if row["answer"] in ("yes", "no")]
        check(f"likelihood, {method}", scores[CHOICE][name]["acc"], share(choice))
    (folder / "reproduce" / "results.json").unlink()
    assert reproduced(folder, task)[1] == files, "the same command again gives other files"

    judged(folder, task, rows, right)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lmms_eval"]
    carved = by_command(start, folder, task, f"keep={KEEP},method=tokencarve")
    check("two processes, carved", carved, share(right["tokencarve"]))
    start = [str(Path(sys.executable).with_name("lmms-eval"))]
    check("lmms-eval, vanilla", by_command(start, folder, task, "seed=0", "--limit=12"), share(right["vanilla"][:12]))
    print("lmms-eval and experiments.eval agree")


if __name__ == "__main__":
    main()
