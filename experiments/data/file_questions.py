"""Questions of a file in one of LLaVA's formats, about images in a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from experiments.core.config import PromptConfig
from experiments.data import formats
from experiments.data import question_images as images
from experiments.data.questions import QuestionSet, Sample, alike
from models.errors import CommandError


class FileQuestions(QuestionSet):
    """The rows of a file (see `experiments.data.formats`), in its order, those that cannot be asked too.

    Args:
      path: of the file.
      folder: that the images are in; None where the file holds them, or needs none.
      limit: the first so many rows alone; None means all.

    Raises:
      CommandError: the file cannot be read as a whole, there is no such folder, or none is given that is needed.
    """

    def __init__(self, path: Path, folder: Path | None = None, *, limit: int | None = None):
        self._file, self._folder = formats.read(path), folder
        self.rows, self.max_new_tokens = self._file.rows[:limit], self._file.max_new_tokens
        if folder is None and any(row.image and not row.encoded for row in self.rows):
            raise CommandError(f"{path} names images; say in which folder they are")
        if folder is not None and not folder.is_dir():
            raise CommandError(f"{folder}: no such folder of images")

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int) -> Sample:
        """Row number `index`; see `Readable`. Each is a group of its own."""
        row = self.rows[index]
        if row.problem:
            raise CommandError(row.problem)
        seen: tuple[Any, ...] = ()
        if row.image is not None and row.encoded:
            seen = (images.read_base64(row.image, f"of row {row.line}"),)
        elif row.image is not None:
            assert self._folder is not None
            seen = (images.read_file(images.path_inside(self._folder, row.image), row.image),)
        assert row.id is not None
        return Sample(row.id, row.text, seen, row.answer, group=index)

    def record(self, index: int) -> dict[str, Any]:
        """See `QuestionSet`; no image is read for it."""
        row = self.rows[index]
        about = {"scene": index, "family": "", "question": row.text, "answer": row.answer}
        return {"sample": index, "id": row.id, **about}

    def place(self, index: int) -> dict[str, Any]:
        """See `QuestionSet`."""
        return {"sample": index, "line": self.rows[index].line, "question_id": self.rows[index].id}

    def problem(self, index: int) -> str:
        """See `QuestionSet`."""
        return self.rows[index].problem

    def scorer_line(self, index: int, prediction: str) -> dict[str, Any]:
        """The line that LLaVA's scripts write."""
        row = self.rows[index]
        rounds = {"round_id": row.extra["round_id"]} if "round_id" in row.extra else {}
        more = {name: value for name, value in row.extra.items() if name not in rounds}
        return {"question_id": row.id} | rounds | {"prompt": row.prompt, "text": prediction} | more

    def score(self, index: int, prediction: str) -> bool | None:
        """Whether it is the answer, case and a full stop at the end apart."""
        answer = self.rows[index].answer
        return None if answer is None else _plain(prediction) == _plain(answer)

    def identity(self) -> Mapping[str, Any]:
        """A checksum of the file; images are not read for it."""
        return {"questions_sha256": self._file.sha256, "rows": len(self.rows)}

    def batches(self, size: int) -> list[list[int]]:
        """All rows that can be asked, in batches of like ones: with or without an image, of similar length.

        A batch is as long as its longest prompt, and one without images runs no tower.
        """
        askable = [(index, row) for index, row in enumerate(self.rows) if not row.problem]
        kinds = ([(i, row) for i, row in askable if (row.image is None) is without] for without in (False, True))
        return [part for kind in kinds for part in alike({index: len(row.text) for index, row in kind}, size)]


@dataclasses.dataclass(frozen=True)
class QuestionFile:
    """The `QuestionSource` of a file; attributes as the arguments of `FileQuestions`."""

    prompt: ClassVar[PromptConfig] = PromptConfig()
    least_images: ClassVar[int] = 0

    path: Path
    folder: Path | None = None
    limit: int | None = None

    @property
    def title(self) -> str:
        """See `QuestionSource`."""
        return self.path.name

    def load(self) -> FileQuestions:
        """See `QuestionSource`."""
        return FileQuestions(self.path, self.folder, limit=self.limit)


def _plain(answer: str) -> str:
    """As answers are compared: "Yes." is "yes"."""
    return answer.strip().rstrip(".").casefold()
