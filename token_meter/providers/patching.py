"""Patching a class for the whole process, and taking it back.

A patch is a `wrapt` wrapper on the class attribute. It can be undone only while it is still the outermost one; when
another tool has wrapped it since, it is switched off instead. An import hook cannot be unregistered, so it asks the
same switch. Of several patches of one attribute only the newest acts: a call is counted once, whoever hooks it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import wrapt

_patches: Final[dict[tuple[Any, str], list[Patch]]] = {}
"""The patches on each class attribute, the outermost last: as process-wide as the classes they are on."""


class Patch:
    """One thing that was changed, or will be when its module is imported."""

    def __init__(self) -> None:
        self.enabled = True
        self._inner: list[Patch] = []
        self._owner: Any = None
        self._name = ""
        self._original: Any = None
        self._wrapper: Any = None
        self._stack: list[Patch] = []

    @property
    def acts(self) -> bool:
        """Whether this is the newest patch of its attribute that is not taken back."""
        if self.enabled:
            for each in reversed(self._stack):
                if each is self or each.enabled:
                    return each is self
        return False

    @classmethod
    def when_imported(cls, module: str, apply: Callable[[Any], list[Patch]]) -> Patch:
        """Apply now if `module` is imported, else when it is. Errors of an applied hook are raised at once."""
        self = cls()
        if module in sys.modules:
            self._inner = apply(sys.modules[module])
            return self

        def hook(imported: Any) -> None:
            if self.enabled:
                self._inner = apply(imported)

        wrapt.register_post_import_hook(hook, module)
        return self

    def undo(self) -> None:
        """Restore what was patched; switch off what cannot be restored."""
        self.enabled = False
        for patch_ in self._inner:
            patch_.undo()
        stack = self._stack
        while stack and not stack[-1].enabled and self._owner.__dict__.get(self._name) is stack[-1]._wrapper:
            setattr(self._owner, self._name, stack.pop()._original)


def patch(owner: Any, name: str, wrapper: Callable[[Any, Any, Any, Any], Any]) -> Patch:
    """Wrap `owner.name` with `wrapper(original, instance, args, kwargs)`."""
    done = Patch()

    def switched(original: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        if not done.acts:
            return original(*args, **kwargs)
        return wrapper(original, instance, args, kwargs)

    done._owner = owner
    done._name = name
    done._original = owner.__dict__[name]
    done._wrapper = wrapt.FunctionWrapper(done._original, switched)
    done._stack = _patches.setdefault((owner, name), [])
    done._stack.append(done)
    setattr(owner, name, done._wrapper)
    return done


class Undo:
    """What `meter.instrument()` returns: call it, or leave its `with` block, to take everything back."""

    def __init__(self, patches: list[Patch]) -> None:
        self._patches = patches

    @property
    def pending(self) -> bool:
        """Whether there is something to take back."""
        return bool(self._patches)

    def __call__(self) -> None:
        """Take the instrumentation back; safe to call twice."""
        for each in self._patches:
            each.undo()
        self._patches = []

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *exc: object) -> None:
        self()
