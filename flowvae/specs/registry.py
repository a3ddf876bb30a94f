"""Names with options, and the builders behind them.

A person types `nsf[bins=16,bound=8]`; a builder is a function whose keyword-only arguments, with
their annotations and defaults, *are* the options. The registry joins the two: it parses, fills in
every default, checks each value against its annotation and calls the builder. What it resolves to
is one canonical string, so that equal choices have equal ids however they were typed.

A builder need not be ours: `my_module:my_prior` names a function of any module that can be
imported, and an installed package can give one a name of its own as an entry point.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flowvae.errors import USER_CODE_ERRORS, InputError, unknown
from flowvae.specs.values import Value, read, write

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Entry", "Registry", "Spec", "split"]


Built = TypeVar("Built")


def split(text: str) -> list[str]:
    """Splits at commas outside brackets, dropping the blanks around each part.

    Example:
        >>> split("gauss, nsf[bins=16,bound=8]")
        ['gauss', 'nsf[bins=16,bound=8]']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _balanced(text: str) -> bool:
    """Returns whether each bracket has its partner."""
    depths = list(itertools.accumulate((c == "[") - (c == "]") for c in text))
    return not depths or (min(depths) >= 0 and depths[-1] == 0)


@dataclass(frozen=True)
class Spec:
    """A name with options as a person types them: `maf`, `nsf[bins=16,bound=8]`.

    Arguments:
        name: The name in its registry.
        options: The options as text, by name.

    Example:
        >>> str(Spec.parse("nsf[ bins=16, bound=8 ]"))
        'nsf[bins=16,bound=8]'
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Reads `name` or `name[option=value,...]`.

        Raises:
            InputError: The text has another form, or names an option twice.
        """
        name, bracket, rest = text.strip().partition("[")
        shape = f"cannot read '{text}': expected NAME or NAME[OPTION=VALUE,...]"
        if not name or (bracket and not rest.endswith("]")) or not _balanced(rest[:-1]):
            raise InputError(shape)
        options: dict[str, str] = {}
        for part in split(rest[:-1]):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not (key and equals and value):
                raise InputError(shape)
            if key in options:
                raise InputError(f"option '{key}' stands twice in '{text}'")
            options[key] = value
        return cls(name.strip(), tuple(options.items()))

    def __str__(self) -> str:
        inside = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{self.name}[{inside}]" if inside else self.name


@dataclass(frozen=True)
class Entry(Generic[Built]):
    """A registered builder.

    Arguments:
        name: Its name.
        build: The function; its keyword-only arguments are the options.
        version: Counts the changes that alter its numbers; part of a trial's id. Of a builder that
            is not ours, a hash of its module's text.
        source: Where it was published, or what it is.
        stackable: Whether `torch.func.vmap` takes what it builds; if not, seeds train one by one.
        later: Options added after the first release: at their defaults a spec leaves them out, so
            that earlier trials keep their ids.
        caveat: What a reader of its numbers must know, such as an estimated normalising constant.
    """

    name: str
    build: Callable[..., Built]
    version: int | str
    source: str
    stackable: bool
    later: tuple[str, ...] = ()
    caveat: str = ""

    @property
    def summary(self) -> str:
        """The first sentence of the builder's docstring."""
        return (inspect.getdoc(self.build) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")

    @property
    def options(self) -> dict[str, Value]:
        """The defaults of the options, by name."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


class Registry(Mapping[str, Entry[Built]]):
    """Builders by name: the library's, those of installed packages, and of a user's modules.

    A name `module:function` imports the builder; a name that is not registered is looked up among
    the installed packages' entry points of the group `flowvae.priors` (`.nets`, `.datasets`).

    Arguments:
        kind: What the builders build, for messages: `prior`, `net`, `dataset`.

    Example:
        >>> from flowvae.specs.values import Widths
        >>> nets = Registry("net")
        >>> @nets.register("mlp", source="Rumelhart et al., 1986")
        ... def mlp(features: int, *, hidden: Widths = (64, 64)) -> str:
        ...     return f"{features} -> {hidden}"
        >>> nets.resolve("mlp")
        'mlp[hidden=64x64]'
        >>> nets.label("mlp[hidden=64x64]"), nets.label("mlp[hidden=8]")
        ('mlp', 'mlp[hidden=8]')
        >>> nets.build("mlp[hidden=8]", 3)
        '3 -> (8,)'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[Built]] = {}
        self._others: dict[str, Entry[Built]] = {}

    def __getitem__(self, name: str) -> Entry[Built]:
        if name not in self._others:
            entry = self._entries.get(name)
            # An installed builder may be registered, too, by its module, imported now or before.
            if entry and (_is_ours(entry) or name not in self.installed()):
                return entry
            self._others[name] = self._found(name)
        return self._others[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def register(
        self,
        name: str,
        *,
        source: str,
        version: int = 1,
        stackable: bool = True,
        later: Sequence[str] = (),
        caveat: str = "",
    ) -> Callable[[Callable[..., Built]], Callable[..., Built]]:
        """Registers the decorated builder; see `Entry` for the arguments."""

        def add(build: Callable[..., Built]) -> Callable[..., Built]:
            assert name not in self._entries, f"{self.kind} '{name}' is registered twice"
            self._entries[name] = Entry(
                name, build, version, source, stackable, tuple(later), caveat
            )
            return build

        return add

    def installed(self) -> dict[str, EntryPoint]:
        """Returns the builders that installed packages bring, by name."""
        from importlib.metadata import entry_points  # slow to import: only when it is needed

        return {point.name: point for point in entry_points(group=f"flowvae.{self.kind}s")}

    def _found(self, name: str) -> Entry[Built]:
        """Returns the entry of a builder that is not ours.

        Raises:
            InputError: There is none, or it cannot be used.
        """
        if ":" in name:
            return self._imported(name, name)
        installed = self.installed()
        if name not in installed:
            raise unknown(self.kind, name, [*self._entries, *installed])
        return self._imported(name, installed[name].value)

    def _imported(self, name: str, path: str) -> Entry[Built]:
        """Imports the builder at `path`, a text `module:function`."""
        module_name, _, function_name = (part.strip() for part in path.partition(":"))
        wanted = f"the {self.kind} '{name}'"
        try:
            module = importlib.import_module(module_name)
        except (ImportError, ValueError) as error:  # ValueError: an empty name
            raise InputError(
                f"cannot import '{module_name}' for {wanted}: {error}. Expected MODULE:FUNCTION, "
                "the module in the current folder or installed"
            ) from error
        except USER_CODE_ERRORS as error:
            raise InputError(
                f"importing the module of {wanted} fails: {type(error).__name__}: {error}"
            ) from error
        build = getattr(module, function_name, None)
        if build is None:
            functions = [k for k, v in vars(module).items() if inspect.isfunction(v)]
            raise unknown("function", function_name, functions, of=f"module '{module_name}'")
        if not callable(build):
            raise InputError(f"{wanted} is a {type(build).__name__}: expected a function")
        _check_options(build, wanted)
        known = next((e for e in self._entries.values() if e.build is build), None)
        return Entry(
            name,
            build,
            _text_hash(module),
            known.source if known else f"{module_name}, not part of flowvae",
            known.stackable if known else False,
            caveat=known.caveat if known else "",
        )

    def options(self, text: str) -> dict[str, Value]:
        """Reads a spec and returns all its options, defaults filled in, in the builder's order.

        Raises:
            InputError: The name or an option is unknown, or a value is not what it should be.
        """
        spec = Spec.parse(text)
        entry = self[spec.name]
        options = entry.options
        annotations = typing.get_type_hints(entry.build, include_extras=True)
        for key, value in spec.options:
            if not options:
                raise InputError(
                    f"{self.kind} '{spec.name}' takes no options; got '{key}={value}'"
                )
            if key not in options:
                raise unknown("option", key, options, of=f"{self.kind} '{spec.name}'")
            try:
                options[key] = read(value, annotations[key])
            except ValueError as expected:
                raise InputError(
                    f"bad value '{value}' for option '{key}' of {self.kind} '{spec.name}': "
                    f"expected {expected}"
                ) from None
        return options

    def _spec(self, text: str, options: Mapping[str, Value]) -> str:
        return str(Spec(Spec.parse(text).name, tuple((k, write(v)) for k, v in options.items())))

    def resolve(self, text: str) -> str:
        """Returns the canonical spec: every option, in the builder's order."""
        entry = self[Spec.parse(text).name]
        options, defaults = self.options(text), entry.options
        kept = {k: v for k, v in options.items() if k not in entry.later or v != defaults[k]}
        return self._spec(text, kept)

    def label(self, text: str) -> str:
        """Returns the short spec: only the options that differ from their defaults."""
        defaults = self[Spec.parse(text).name].options
        options = self.options(text)
        return self._spec(text, {k: v for k, v in options.items() if v != defaults[k]})

    def build(self, text: str, *args: object) -> Built:
        """Calls the builder of the spec `text` with `args` and the spec's options."""
        return self[Spec.parse(text).name].build(*args, **self.options(text))


def _is_ours(entry: Entry[Any]) -> bool:
    """Tells whether a builder is part of flowvae."""
    return entry.build.__module__.partition(".")[0] == "flowvae"


def _check_options(build: Callable[..., Any], wanted: str) -> None:
    """Raises for a builder whose options cannot be read from the command line."""
    try:
        annotations = typing.get_type_hints(build, include_extras=True)
        parameters = inspect.signature(build).parameters.values()
    except (NameError, TypeError, ValueError) as error:
        raise InputError(f"cannot read the arguments of {wanted}: {error}") from error
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and (p.default is p.empty or p.name not in annotations):
            raise InputError(
                f"option '{p.name}' of {wanted} has no annotation or no default: expected, for "
                f"example, `*, {p.name}: Count = 64` (`from flowvae.specs.values import Count`)"
            )
        if p.kind is p.KEYWORD_ONLY and not _readable(p.default, annotations[p.name]):
            raise InputError(
                f"option '{p.name}' of {wanted} cannot be typed: its default {p.default!r} "
                "changes when written and read as text; expected a type of flowvae.specs.values"
            )


def _readable(default: Any, annotation: Any) -> bool:  # noqa: ANN401
    """Returns whether reading the text of an option's default gives the default."""
    try:
        return bool(read(write(default), annotation) == default)
    except (TypeError, ValueError, AttributeError):  # of an annotation that is none of ours
        return False


def _text_hash(module: Any) -> str:  # noqa: ANN401
    """Returns a hash of a module's text: an edited builder is another one."""
    try:
        return hashlib.sha256(Path(inspect.getfile(module)).read_bytes()).hexdigest()[:12]
    except (TypeError, OSError):
        return "unknown"  # a module without a file
