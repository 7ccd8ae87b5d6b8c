"""A command's options as a form, made from what its parser says of them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.value_element import ValueElement

from lorabench.web.frame import Here
from lorabench.web.shelf import Item
from lorabench.web.tools import Argument, Tool

__all__ = ["Form", "choose"]


def choose(items: Iterable[Item], many: bool, chosen: Iterable[str], changed: Callable[[], None]) -> ui.select:
    """A list of adapters to choose from, with a search in it.

    Args:
        items: the adapters.
        many: whether several may be chosen; their order is that in which they were.
        chosen: ids of those that are chosen at first; such as are not there are passed over.
        changed: called when others are chosen.
    """
    names = {item.id: item.name for item in items}
    first = [item_id for item_id in chosen if item_id in names]
    label = "Adapters" if many else "Adapter"
    select = ui.select(
        names, multiple=many, with_input=True, clearable=True, label=label, on_change=lambda _: changed(),
        value=first if many else next(iter(first), None),
    )  # fmt: skip
    return select.classes("w-full").props("use-chips" if many else "")


class Form:
    """Inputs for the options of a command.

    Args:
        here: whose page it is on.
        tool: the command.
        changed: called when a value changes.
        without: names of options that the panel asks for in its own way.
        count: options that are shown at once where none must be given.
    """

    def __init__(
        self, here: Here, tool: Tool, changed: Callable[[], None], without: Iterable[str] = (), count: int = 3
    ) -> None:
        self._here, self._changed = here, changed
        self._values: dict[str, Any] = {}
        self._elements: dict[str, ValueElement[Any]] = {}
        self._turned: set[str] = set()
        shown = [one for one in tool.arguments if one.name not in set(without)]
        first = [one for one in shown if one.required] or shown[:count]
        for argument in first:
            self._add(argument)
        rest = [one for one in shown if one not in first]
        if rest:
            with ui.expansion("More options", icon="tune").classes("w-full"):
                for argument in rest:
                    self._add(argument)

    @property
    def values(self) -> dict[str, Any]:
        """Option -> its value, for those that say something."""
        return {name: value for name, value in self._values.items() if value not in (None, "", [])}

    def fill(self, values: Mapping[str, Any]) -> None:
        """Set options to what was given before; an adapter that is no longer there is passed over."""
        for name, value in values.items():
            element = self._elements.get(name)
            if element is None or (isinstance(element, ui.select) and value not in element.options):
                continue
            if isinstance(element, ui.input_chips):
                value = [str(one) for one in value] if isinstance(value, list) else [str(value)]
            element.set_value(not value if name in self._turned else value)

    def _set(self, argument: Argument, value: Any) -> None:
        if argument.kind == "whole" and isinstance(value, float) and value.is_integer():
            value = int(value)
        if argument.many == "+" and isinstance(value, list):
            value = [_number(one) for one in value]
        self._values[argument.name] = value
        self._changed()

    def _add(self, argument: Argument) -> None:
        label = argument.spelled.lstrip("-").replace("-", " ")
        default = argument.default if isinstance(argument.default, bool | int | float | str) else None
        number = default if isinstance(default, int | float) else None

        def keep(event: Any) -> None:
            self._set(argument, event.value)

        element: ValueElement[Any]
        with ui.column().classes("w-full gap-0"):
            if argument.turns_off:  # as it is spelled, so that its help is true of it: "no normalize"
                self._turned.add(argument.name)
                element = ui.switch(label, on_change=lambda event: self._set(argument, not event.value))
            elif argument.kind == "flag":
                element = ui.switch(argument.name.replace("_", " "), value=bool(default), on_change=keep)
            elif argument.many:
                element = _chips(label, lambda values: self._set(argument, values))
            elif argument.kind == "choice":
                element = ui.select(
                    list(argument.choices), value=default, label=label, clearable=not argument.required, on_change=keep
                ).classes("w-full")
            elif argument.kind == "model":
                models = [model.name for model in self._here.site.models.all()]
                element = ui.select(models, label="Model", on_change=keep).classes("w-full")
            elif argument.kind == "adapter":
                names = {item.id: item.name for item in self._here.items()}
                element = ui.select(names, label=label, clearable=True, with_input=True, on_change=keep)
                element.classes("w-full")
            elif argument.kind in ("whole", "number"):
                element = ui.number(label, value=number, on_change=keep).classes("w-full")
            else:
                element = ui.input(label, value=str(default or ""), on_change=keep).classes("w-full")
            ui.label(argument.help).classes("text-xs fainter")
        self._elements[argument.name] = element.mark(argument.name)


def _chips(label: str, keep: Callable[[list[str]], None]) -> ui.input_chips:
    """Several values: what is being typed is the last of them, with Enter or without."""
    typed = [""]

    def values() -> list[str]:
        return [*(chips.value or []), *([typed[0]] if typed[0].strip() else [])]

    def type_in(event: Any) -> None:
        typed[0] = str(event.args or "")
        keep(values())

    def leave() -> None:
        """A browser tells of this after the click on a button that somebody went on to."""
        chips.set_value(values())
        typed[0] = ""

    chips = ui.input_chips(label, new_value_mode="add", on_change=lambda _: keep(values()))  # the same twice, too
    chips.classes("w-full").props("dense")
    chips.on("input-value", type_in)
    chips.on("blur", leave, [])
    return chips


def _number(text: Any) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
