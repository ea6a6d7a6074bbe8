"""Every public name is documented to the same plan, with an example that the doctest run collects."""

import doctest
import inspect

import pytest

import tokencarve_jax as tc

NAMES = [name for name in tc.__all__ if callable(getattr(tc, name))]  # and not the two tables
CLASSES = [name for name in tc.__all__ if inspect.isclass(getattr(tc, name))]


def test_no_public_name_is_missing_from_all():
    public = {name for name, value in vars(tc).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(tc.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_has_every_part_and_its_example_passes(name):
    thing = getattr(tc, name)
    text = inspect.getdoc(thing)
    parts = ["Attributes:"] if name in CLASSES else ["Args:", "Returns:", "Raises:"]
    for part in [*parts, "Source:", "Examples:"]:
        assert part in text, f"{name} has no {part}"
    documented = text.split("Returns:")[0]
    fields = thing.__dataclass_fields__ if name in CLASSES else inspect.signature(thing).parameters
    for field in fields:
        assert f"{field}: " in documented, f"{name} says nothing of {field}"
    module = inspect.getmodule(thing)
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, module=module, globs=vars(module).copy())
    assert test.examples
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.DocTestRunner(optionflags=flags).run(test).failed == 0
