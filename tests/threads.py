"""For tests of several processes: threads in their place, which share what is compiled."""

import threading

import jax

from experiments.cli import CommandError
from experiments.processes import Group


class Store:
    """Stands in for JAX's client, for processes that are threads here."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            if key in self.values:
                raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, limit_ms):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, limit_ms / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in list(self.values.items()) if key.startswith(folder + "/")]


def in_threads(bodies):
    """Run one function per process, each with its group; gives what each raised."""
    store, raised = Store(), [None] * len(bodies)

    def run(index):
        group = Group(store, index=index, count=len(bodies))
        try:
            bodies[index](group)
        except CommandError as error:
            group.fail(error)
            raised[index] = str(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)  # far more than is needed, so that a test fails and does not hang
        assert not thread.is_alive()
    return raised
