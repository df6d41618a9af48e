"""Files that people write: YAML or JSON read exactly, checked against a model, and errors that name line and field.

Numbers stay what was written (a Decimal, never a float). Anchors are refused: with them a small file can describe an
enormous one. PyYAML and pydantic are loaded when a file is read, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, TypeVar

from token_meter.errors import InvalidDocument

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

BYTES_MAX: Final = 4_000_000
"""The largest file that is read."""

ERRORS_SHOWN_MAX: Final = 10

Place = tuple[str | int, ...]
Model = TypeVar("Model", bound="BaseModel")


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, and on which line each of its fields stands. `name` is the file, for messages."""

    name: str
    content: Any
    lines: Mapping[Place, int]

    def where(self, place: Place) -> str:
        """`plans.yaml:12` for the field at this place, or for the nearest one around it that stands in the file."""
        for end in range(len(place), -1, -1):
            if place[:end] in self.lines:
                return f"{self.name}:{self.lines[place[:end]]}"
        return self.name


def read_document(text: str | bytes, *, name: str) -> Document:
    """Read YAML, and so JSON. Raises InvalidDocument with the line for what is neither."""
    import yaml

    if len(text) > BYTES_MAX:
        raise InvalidDocument(f"{name} is larger than {BYTES_MAX:,} bytes")
    try:
        shown = text.decode("utf-8") if isinstance(text, bytes) else text
        _refuse_anchors(shown)
        node = yaml.compose(shown, Loader=_loader())
        if node is None:
            return Document(name, None, {})
        lines: dict[Place, int] = {}
        content = _read(node, (), lines)
    except UnicodeDecodeError:
        raise InvalidDocument(f"{name} is no text in UTF-8") from None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        at = f":{mark.line + 1}" if mark else ""
        raise InvalidDocument(f"{name}{at}: {problem.problem or problem.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise InvalidDocument(f"{name}: {str(problem).splitlines()[0]}") from None
    return Document(name, content, lines)


def document_of(content: Any, *, name: str) -> Document:
    """The same for what a program hands over instead of a file."""
    return Document(name, content, {})


def checked(model: type[Model], document: Document) -> Model:
    """The document as an object of this pydantic model. Raises InvalidDocument naming each wrong field and its line."""
    from pydantic import ValidationError

    try:
        return model.model_validate(document.content)
    except ValidationError as problem:
        raise InvalidDocument("; ".join(_explained(problem, document, model))) from None
    except RecursionError:
        raise InvalidDocument(f"{document.name}: it is nested too deeply") from None


def _explained(problem: ValidationError, document: Document, model: type[BaseModel]) -> list[str]:
    said = []
    for error in problem.errors(include_url=False, include_context=True)[:ERRORS_SHOWN_MAX]:
        place: Place = tuple(part for part in error["loc"] if _stands(part, error["loc"], document))
        field = ".".join(map(str, place)) or "the whole"
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = f"is no field here{_hint(str(place[-1]) if place else '', error, model)}"
        said.append(f"{document.where(place)}: {field}: {message}")
    more = problem.error_count() - len(said)
    return [*said, f"and {more} more"] if more else said


def _stands(part: str | int, place: tuple[str | int, ...], document: Document) -> bool:
    """pydantic puts the names of union members among the fields; those stand in no file."""
    if not document.lines:
        return True
    end = place.index(part)
    before = tuple(each for each in place[:end] if each != part)
    return any((*line[: len(line) - 1], part) == line for line in document.lines if line) or not before


def _hint(name: str, error: Any, model: type[BaseModel]) -> str:
    known = sorted({field for each in _models(model, set()) for field in _names(each)})
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(kind: Any, seen: set[Any]) -> set[type[BaseModel]]:
    """A model and every model inside it."""
    from typing import get_args

    from pydantic import BaseModel

    found: set[type[BaseModel]] = set()
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind in seen:
            return found
        seen.add(kind)
        found.add(kind)
        for field in kind.model_fields.values():
            found |= _models(field.annotation, seen)
    for argument in get_args(kind):
        found |= _models(argument, seen)
    return found


def _refuse_anchors(text: str) -> None:
    import yaml

    for event in yaml.parse(text, Loader=_loader()):
        if getattr(event, "anchor", None) is not None:
            mark = event.start_mark
            raise yaml.YAMLError(f"line {mark.line + 1 if mark else '?'}: anchors are not allowed")


def _loader() -> Any:
    import yaml

    return yaml.SafeLoader


def _read(node: Any, place: Place, lines: dict[Place, int]) -> Any:
    import yaml

    if place in lines:
        raise yaml.MarkedYAMLError(problem=f"{place[-1]!r} stands here twice", problem_mark=node.start_mark)
    lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        content: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a field's name must be text", problem_mark=key.start_mark)
            content[key.value] = _read(value, (*place, key.value), lines)
            # What is wrong with a field is shown on the line where its name stands.
            lines[(*place, key.value)] = key.start_mark.line + 1
        return content
    if isinstance(node, yaml.SequenceNode):
        return [_read(each, (*place, number), lines) for number, each in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: Any) -> Any:
    """Text, whole numbers, decimals, true, false, nothing. Dates stay text: who reads the field knows what it is."""
    kind = node.tag.rpartition(":")[2]
    text = node.value
    if node.style is not None or kind in ("str", "timestamp"):
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind in ("int", "float"):
        try:
            number = Decimal(text.replace("_", ""))
        except InvalidOperation:
            return text  # an octal, a clock time: YAML's notations that nobody means
        return int(number) if kind == "int" and number == number.to_integral_value() else number
    return text
