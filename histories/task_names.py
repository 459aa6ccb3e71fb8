"""Which task a group of a foreign file is: stated by the user or certain, never guessed."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from histories.foreign import Foreign, ImportHistoriesError, params_of
from tasks.family import Task

TaskRule = Literal["certain", "params", "name", "index"]


class TaskNames:
    """Finds the task of each group."""

    def __init__(
        self,
        tasks: Sequence[Task],
        rule: TaskRule = "certain",
        mapping: Mapping[str, Any] | None = None,
    ) -> None:
        """See `import_histories.tasks` and `import_histories.mapping`.

        Raises:
            ImportHistoriesError: The mapping names what is no task.
        """
        self.tasks, self.rule = tasks, rule
        self.by_name = {task.name: task for task in tasks}
        self.by_key = {task.key(): task for task in tasks}
        self.varied = _varied(tasks)
        self.mapping = {
            str(name): self._mapped(name, task) for name, task in (mapping or {}).items()
        }

    def _mapped(self, name: str, stated: Any) -> Task:
        if isinstance(stated, int) and 0 <= stated < len(self.tasks):
            return self.tasks[stated]
        if str(stated) in self.by_name:
            return self.by_name[str(stated)]
        raise ImportHistoriesError(
            f"import_histories.mapping has {name!r}: {stated!r}, expected the name or the index "
            f"(0 ... {len(self.tasks) - 1}) of a task, such as {self.tasks[0].name!r}"
        )

    def task_of(self, group: Foreign) -> Task | None:
        """The task of a group; None for one that a mapping leaves out.

        Raises:
            ImportHistoriesError: It cannot be told, or is none of the family's.
        """
        if self.mapping:
            return self.mapping.get(group.name)
        for rule, find in (("params", self._by_params), ("name", self._by_name)):
            if self.rule in ("certain", rule) and (task := find(group)):
                return task
        if self.rule == "index":
            return self._by_index(group)
        raise ImportHistoriesError(self._untold(group))

    def _by_params(self, group: Foreign) -> Task | None:
        stated = params_of(group.attributes)
        if not (self.varied and self.varied <= set(stated)):
            return None
        fits = [
            task
            for task in self.tasks
            if all(
                _alike(stated[name], task.params[name]) for name in set(stated) & set(task.params)
            )
        ]
        return fits[0] if len(fits) == 1 else None

    def _by_name(self, group: Foreign) -> Task | None:
        return self.by_name.get(group.name)

    def _by_index(self, group: Foreign) -> Task:
        last = group.name.rpartition("/")[2]
        if last.isdecimal() and int(last) < len(self.tasks):
            return self.tasks[int(last)]
        raise ImportHistoriesError(
            f"group {group.name}: its name is no index of a task, 0 ... {len(self.tasks) - 1}; "
            "state import_histories.mapping={GROUP: task, ...}"
        )

    def _untold(self, group: Foreign) -> str:
        stated = params_of(group.attributes)
        told = ", ".join(f"{name}={value}" for name, value in list(stated.items())[:4])
        expected = ", ".join(sorted(self.varied)[:4])
        return (
            f"group {group.name} ({told or 'no attributes'}) is no task of the family by "
            f"{'parameters or name' if self.rule == 'certain' else self.rule}: expected attributes "
            f"{expected}, or a name such as {self.tasks[0].name!r}; state "
            "import_histories.mapping={GROUP: task, ...}, or import_histories.tasks=index if "
            "groups are called after the indices of the family's tasks"
        )


def _varied(tasks: Sequence[Task]) -> set[str]:
    """Names of the parameters by which tasks differ."""
    names = {name for task in tasks for name in task.params}
    return {n for n in names if len({repr(task.params.get(n)) for task in tasks}) > 1}


def _alike(stated: Any, own: Any) -> bool:
    return (list(stated) if isinstance(stated, tuple) else stated) == own
