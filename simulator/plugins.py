"""Registries that are open to the outside: what is shipped, what a script registers, what installed packages offer.

A package offers a value by an entry point of the registry's group (packaging.python.org, "Entry points specification"):

    [project.entry-points."foretrain.schedules"]
    mine = "my_package.schedules:MINE"

Entry points are looked up when a name is first asked for, and a package is imported only when its own name is. What
is wrong with one is an error of one line for whoever asks for that name; all other names stay usable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from simulator.errors import ForetrainError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

_registered: set[str] = set()
"""Kinds of which a script registered a value, in any registry of this process."""


def registered_by_script() -> bool:
    """Whether a value is registered in this process only: work on it then stays here."""
    return bool(_registered)


class Registry(Mapping[str, T], Generic[T]):
    """Values of one kind by name; it cannot be assigned to, only `register` adds.

    Parameters
    ----------
    kind : what a value is called in errors, as in "schedule".
    cls : the class that every value is of.
    group : the entry points' group, as in "foretrain.schedules".
    shipped : the project's own values; they come first, in their order.
    error : the class of the errors that this registry raises.
    """

    def __init__(
        self, *, kind: str, cls: type[T], group: str, shipped: Mapping[str, T], error: type[ForetrainError]
    ) -> None:
        self.kind, self.cls, self.group, self.error = kind, cls, group, error
        self.shipped: Mapping[str, T] = dict(shipped)
        self.registered: dict[str, T] = {}
        """What `register` added in this process."""
        self._loaded: dict[str, T] = {}
        self._offers: dict[str, list[EntryPoint]] | None = None

    def register(self, name: str, value: T) -> None:
        """Add a value for this process; raises the registry's error for a name in use, or a value of another class."""
        if name in self:
            raise self.error(f"{self.kind} {name!r} cannot be registered: there is one already, {self.origin(name)}")
        self.registered[name] = self._checked(name, value, "registered by a script")
        _registered.add(self.kind)

    def __getitem__(self, name: str) -> T:
        offers = self._offered().get(name, ())
        known = self.shipped.get(name, self.registered.get(name, self._loaded.get(name)))
        if not offers and known is not None:
            return known
        if len(offers) + (name in self.shipped) + (name in self.registered) > 1:
            raise self.error(f"{self.kind} {name!r} is there twice, {self.origin(name)}: rename or uninstall one")
        if not offers:
            raise KeyError(name)
        if known is None:
            known = self._loaded[name] = self._load(name, offers[0])
        return known

    def __contains__(self, name: object) -> bool:
        return name in self.shipped or name in self.registered or name in self._offered()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.shipped, *self.registered, *self._offered()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def origin(self, name: str) -> str:
        """Who brought a name, in words: "shipped with foretrain", "mine:VALUE of package mine 1.0"."""
        found = ["shipped with foretrain"] if name in self.shipped else []
        found += ["registered by a script"] if name in self.registered else []
        return " and ".join(found + [_package(offer) for offer in self._offered().get(name, ())])

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Code of a value from outside runs within: its crash becomes one line; our own crashes stay crashes."""
        try:
            yield
        except ForetrainError:
            raise
        except Exception as error:
            if name in self.shipped:
                raise
            raise self.error(f"{self.kind} {name!r}, {self.origin(name)}, fails: {_message(error)}") from error

    def _offered(self) -> dict[str, list[EntryPoint]]:
        """Entry points by name, sorted: an order of names that no disk decides."""
        if self._offers is None:
            from importlib.metadata import entry_points

            try:
                found = list(entry_points(group=self.group))
            except Exception as error:  # a package with a broken entry_points.txt
                raise self.error(f"{self.group}: the installed packages cannot be read: {_message(error)}") from error
            self._offers = {}
            for offer in sorted(found, key=lambda offer: (offer.name, offer.value)):
                self._offers.setdefault(offer.name, []).append(offer)
        return self._offers

    def _load(self, name: str, offer: EntryPoint) -> T:
        try:
            value = offer.load()
        except Exception as error:
            raise self.error(f"{self.kind} {name!r}, {_package(offer)}, cannot be loaded: {_message(error)}") from error
        return self._checked(name, value, _package(offer))

    def _checked(self, name: str, value: object, origin: str) -> T:
        """A value of the right class that is called what it is registered as."""
        if not isinstance(value, self.cls):
            what = f"must be of class {self.cls.__module__}.{self.cls.__name__}, and is of {type(value).__name__}"
            raise self.error(f"{self.kind} {name!r}, {origin}, {what}")
        called = getattr(value, "name", name)
        if called != name:
            raise self.error(f"{self.kind} {name!r}, {origin}, calls itself {called!r}: both must be the same")
        return value


def _package(offer: EntryPoint) -> str:
    package = f"of package {offer.dist.name} {offer.dist.version}" if offer.dist is not None else "of some package"
    return f"{offer.value} {package}"


def _message(error: Exception) -> str:
    """An error of foreign code in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
