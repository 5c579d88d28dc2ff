"""Find what an app serves, by reading its files: Python is parsed with `ast`, and nothing of the app is run.

These sources are read in this order, and the first one that has an answer ends the search:

1. `entrypoint` of `[tool.fastapi]`, and the `web:` line of a Procfile;
2. Django's manage.py, its settings, and ASGI_APPLICATION or WSGI_APPLICATION in them;
3. the modules main, app, asgi and wsgi at the top, in `src/` and in each package there.
"""

from __future__ import annotations

import ast
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .git import Tree
from .process import BuildError

TARGET = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
MODULES = ("main", "app", "asgi", "wsgi")
NAMES = ("app", "application")
FACTORY = re.compile(r"(create|make|build|get)_(app|application|asgi|wsgi|asgi_app|wsgi_app)|app_factory")
# Classes and functions whose result is an ASGI or WSGI app, under any name. A name in NAMES may be bound to any
# other call.
MAKERS = {
    *("APIFlask", "BlackSheep", "Bottle", "Emmett", "Esmerald", "FastAPI", "Flask", "Lilya", "Litestar", "OpenAPI"),
    *("ProtocolTypeRouter", "Quart", "Sanic", "Starlette", "get_asgi_application", "get_wsgi_application"),
}
# Packages whose objects are often named `app` and are no web apps.
OTHERS = {
    *("aiogram", "argparse", "arq", "celery", "click", "cyclopts", "discord", "dramatiq", "faust", "huey", "kivy"),
    *("rq", "slack_bolt", "taskiq", "telegram", "textual", "tkinter", "typer"),
}
# Frameworks that are neither ASGI nor WSGI.
FOREIGN = {
    "aiohttp": "an aiohttp app has its own server",
    "tornado": "a Tornado app has its own server",
    "streamlit": "a Streamlit app has its own server",
}
# Folders that are not searched.
NO_PACKAGES = {"alembic", "docs", "examples", "migrations", "scripts", "test", "tests"}
# Options of servers whose value could be taken for a module.
VALUED = {
    *("-k", "--worker-class", "-c", "--config", "-n", "--name", "-b", "--bind", "-e", "--env", "-u", "--user", "-g"),
    *("--group", "--host", "--log-config", "--proc-name", "-w", "--workers"),
}
FOLDER_OPTIONS = ("--chdir", "--pythonpath", "--app-dir")


@dataclass
class Served:
    """The app that a release serves.

    Attributes:
        target: `module:attribute` or `module:factory()`.
        sources: the files that say so.
        import_paths: the folders, relative to the app's, in which its module is found, other than the app's own.
        remark: a sentence about the answer, or "".
    """

    target: str
    sources: list[str]
    import_paths: list[str] = field(default_factory=list)
    remark: str = ""


@dataclass
class Binding:
    """A name in a module that may be an app: where it is defined, and the suffix that reaches it."""

    origin: tuple[str, str]
    suffix: str = ""


class Folder:
    """The Python files of an app's folder, parsed."""

    def __init__(self, tree: Tree, path: str) -> None:
        self.tree, self.path = tree, path
        self.files = tree.below(path)
        self._parsed: dict[str, ast.Module | None] = {}
        # Why files could not be parsed.
        self.flaws: list[str] = []

    def read(self, name: str) -> str | None:
        """Return the text of a file; None if there is none, or if it is not UTF-8."""
        content = self.tree.read(posixpath.normpath(f"{self.path}/{name}")) if name in self.files else None
        try:
            return content.decode("utf-8-sig") if content is not None else None
        except UnicodeDecodeError:
            return None

    def parse(self, name: str) -> ast.Module | None:
        """Return the syntax tree of a Python file; None if it can't be parsed."""
        if name not in self._parsed:
            try:
                self._parsed[name] = ast.parse(self.read(name) or "")
            except (SyntaxError, ValueError) as error:
                self._parsed[name] = None
                self.flaws.append(f"{name} can't be parsed: {error}")
        return self._parsed[name]

    def find(self, module: str, roots: tuple[str, ...] = ("", "src")) -> tuple[str, str] | None:
        """Return the file of a module and the folder in which its top-level package lies; None if there is none."""
        plain = module.replace(".", "/")
        for root in roots:
            for name in (f"{plain}.py", f"{plain}/__init__.py"):
                if (file := posixpath.normpath(f"{root}/{name}").lstrip("/")) in self.files:
                    return file, root
        return None


def served(folder: Folder, pyproject: Mapping[str, Any], of: str) -> Served:
    """Return what the app in a folder serves.

    Args:
        folder: the app's folder.
        pyproject: the content of its pyproject.toml.
        of: the words that name the folder and the commit, such as `app of commit 0123456789ab`.

    Raises:
        BuildError: nothing is found, or two answers; the message has the line to write.
    """
    written = [each for each in (entrypoint(folder, pyproject), procfile(folder, of)) if each]
    if len({each.target for each in written}) > 1:
        raise BuildError(several(of, [(each.target, each.sources[0]) for each in written]))
    if written:
        return Served(
            written[0].target, [each.sources[0] for each in written], written[-1].import_paths, written[-1].remark
        )
    return django(folder, of) or modules(folder, of)


def line(target: str) -> str:
    """Return the two places where an answer can be written."""
    return (
        f'app_serve: {target} in the inventory, or serve = "{target}" under [tool.booty] in the app\'s pyproject.toml'
    )


def several(of: str, answers: list[tuple[str, str]]) -> str:
    """Return the sentence for an app with several answers."""
    each = " and ".join(f"{target} ({source})" for target, source in answers)
    return f"{of} has more than one app to serve: {each}. Say which one: {line(answers[0][0])}."


def entrypoint(folder: Folder, pyproject: Mapping[str, Any]) -> Served | None:
    """Return the answer of `[tool.fastapi]`."""
    tool = pyproject.get("tool", {})
    target = tool.get("fastapi", {}).get("entrypoint") if isinstance(tool.get("fastapi", {}), dict) else None
    if not isinstance(target, str) or not re.fullmatch(TARGET, target):
        return None
    place = folder.find(target.partition(":")[0])
    return Served(target, ["[tool.fastapi] in pyproject.toml"], [place[1]] if place and place[1] else [])


def other_lines(folder: Folder) -> list[str]:
    """Return the names of a Procfile's lines that Booty does not read: workers, schedulers."""
    names = re.findall(r"^([A-Za-z0-9_-]+)\s*:\s*\S", folder.read("Procfile") or "", re.MULTILINE)
    return [name for name in names if name not in {"web", "release"}]


def release_line(folder: Folder) -> list[str]:
    """Return the command in the `release:` line of a Procfile; none if there is no such line."""
    match = re.search(r"^release\s*:\s*(.+)$", folder.read("Procfile") or "", re.MULTILINE)
    return [match[1].strip()] if match else []


def procfile(folder: Folder, of: str) -> Served | None:
    """Return the answer of the `web:` line of a Procfile; None if there is no such line, or no module in it.

    Raises:
        BuildError: the line runs a script or several programs, or names a module that the commit does not have.
    """
    match = re.search(r"^web\s*:\s*(.+)$", folder.read("Procfile") or "", re.MULTILINE)
    if not match:
        return None
    command = match[1].strip()
    unreadable = f"The `web:` line in the Procfile of {of}, `{command}`, "
    write = f"Write what is served: {line('module:attribute')}."
    try:
        lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words = [*lexer]
    except ValueError as error:
        raise BuildError(f"{unreadable}can't be parsed: {error}. {write}") from None
    if {"&", "|", "||"} & {*words}:
        raise BuildError(f"{unreadable}runs several programs. {write}")
    answers, absent = {}, []
    for target, roots in targets_in(words):
        module = target.partition(":")[0]
        if place := folder.find(module, (*roots, "", "src")):
            answers[target] = place[1]
        elif ":" in target:
            absent.append(target)
    if len(answers) > 1:
        raise BuildError(several(of, [(target, "Procfile") for target in answers]))
    if answers:
        ((target, root),) = answers.items()
        if "(" in target and not target.endswith("()"):
            raise BuildError(
                f"{unreadable}calls a factory with arguments. Booty calls a factory without any: write a function that"
                " passes them, and name it: app_serve: module:function()."
            )
        imported = f"its modules are imported from {root}; the working directory stays the app's folder"
        remark = "" if root in {"", "src"} else imported
        target = target if ":" in target else f"{target}:application"
        return Served(target, ["Procfile"], [root] if root else [], remark)
    if absent:
        raise BuildError(f"{unreadable}names {absent[0]}, and the commit has no such module. {write}")
    if any(word.endswith(".sh") or word in {"bash", "sh", "make", "just", "npm"} for word in words):
        raise BuildError(f"{unreadable}runs a script, which Booty does not read. {write}")
    return None


def targets_in(words: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each word of a command that may name an app, with the folders that the command adds to the import path.

    gunicorn takes a module without an attribute, and uvicorn a factory without parentheses.
    """
    folders, skips = [], False
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        following = words[index + 1] if index + 1 < len(words) else ""
        if option in FOLDER_OPTIONS or word == "cd":
            folders.append(posixpath.normpath(value if equals else following))
            skips = not equals
        elif skips:
            skips = False
        elif word in VALUED:
            skips = True
        elif re.fullmatch(rf"{TARGET}(\(.*\))?", word):
            yield (f"{word}()" if "--factory" in words else word), tuple(folders)
        elif re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", word) and "gunicorn" in words[:index]:
            yield word, tuple(folders)


def django(folder: Folder, of: str) -> Served | None:
    """Return the app of a Django project: ASGI_APPLICATION of its settings, else WSGI_APPLICATION, else wsgi.py."""
    for root in ("", "src"):
        manage = posixpath.join(root, "manage.py")
        if manage not in folder.files:
            continue
        answers: dict[str, list[str]] = {}
        for settings in settings_modules(folder.parse(manage)):
            if not (place := folder.find(settings, (root, "", "src"))):
                continue
            values = assignments(folder, place[0], root)
            dotted = values.get("ASGI_APPLICATION") or values.get("WSGI_APPLICATION") or ""
            package = settings.partition(".")[0]
            choices = [dotted, f"{package}.wsgi.application", f"{package}.asgi.application"]
            for choice in choices:
                module, _, name = choice.rpartition(".")
                if module and folder.find(module, (root, "", "src")):
                    answers.setdefault(f"{module}:{name}", [manage, place[0]])
                    break
        if len(answers) > 1:
            raise BuildError(several(of, [(target, sources[1]) for target, sources in answers.items()]))
        if answers:
            ((target, sources),) = answers.items()
            return Served(target, sources, [root] if root else [])
    return None


def settings_modules(module: ast.Module | None) -> list[str]:
    """Return the values of DJANGO_SETTINGS_MODULE that a manage.py sets."""
    names = []
    for node in ast.walk(module) if module else ():
        if isinstance(node, ast.Call):
            values = node.args
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            values = [node.targets[0].slice, node.value]
        else:
            continue
        texts = [value.value if isinstance(value, ast.Constant) else None for value in values]
        if len(texts) == 2 and texts[0] == "DJANGO_SETTINGS_MODULE" and isinstance(texts[1], str):
            names.append(texts[1])
    return names


def assignments(folder: Folder, file: str, root: str, seen: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the texts that a module assigns to names at its top level, also those of `from .base import *`."""
    values: dict[str, str] = {}
    parsed = folder.parse(file)
    for node in parsed.body if parsed else ():
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            place = folder.find(absolute(node, file, root), (root, "", "src"))
            if place and place[0] not in seen:
                values |= assignments(folder, place[0], root, (*seen, file))
        elif (
            isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        ):
            values |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return values


def collectstatic(folder: Folder) -> list[str]:
    """Return the command that collects the static files of a Django project; none if its settings don't ask for it."""
    for root, modules in settings_of_django(folder):
        installed = "django.contrib.staticfiles" in texts_of(modules)
        if installed and any(assigned(module, "STATIC_ROOT") for module in modules):
            return [f"python {posixpath.join(root, 'manage.py')} collectstatic --noinput"]
    return []


def unserved(folder: Folder) -> str:
    """Return the line to write so that the proxy serves what collectstatic collects; "" if the app does it itself.

    What the settings do not say in plain words is left open: `PREFIX` and `FOLDER`.
    """
    for root, modules in settings_of_django(folder):
        if any("whitenoise" in text.lower() for text in texts_of(modules)):
            return ""
        urls, roots = (
            [value for module in modules for value in assigned(module, name)] for name in ("STATIC_URL", "STATIC_ROOT")
        )
        url = next((text for value in urls if (text := last_text(value))), "PREFIX")
        place = next((text for value in roots if (text := last_text(value))), "FOLDER")
        if "://" in url:
            return ""
        return f"app_static: {{/{url.strip('/')}/: {posixpath.join(root, place.strip('/'))}}}"
    return ""


def settings_of_django(folder: Folder) -> Iterator[tuple[str, list[ast.Module]]]:
    """Yield the folder of each manage.py, and the modules of the settings that it names."""
    for root in ("", "src"):
        manage = posixpath.join(root, "manage.py")
        for settings in settings_modules(folder.parse(manage)) if manage in folder.files else ():
            if place := folder.find(settings, (root, "", "src")):
                yield root, [*star_imports(folder, place[0], root)]


def texts_of(modules: list[ast.Module]) -> set[str]:
    """Return the texts that modules have."""
    nodes = (node for module in modules for node in ast.walk(module))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def last_text(value: ast.expr) -> str:
    """Return the text of a URL or of a folder below one other, such as `BASE_DIR / "static"`; "" for anything else."""
    match value:
        case (
            ast.Constant(value=str(text))
            | ast.BinOp(left=ast.Name(), op=ast.Div(), right=ast.Constant(value=str(text)))
            | ast.Call(func=ast.Attribute(attr="join"), args=[ast.Name(), ast.Constant(value=str(text))])
        ):
            return text
        case ast.Call(func=ast.Name(id="str"), args=[inner]):
            return last_text(inner)
    return ""


def star_imports(folder: Folder, file: str, root: str, seen: tuple[str, ...] = ()) -> Iterator[ast.Module]:
    """Yield the syntax tree of a module, and those of the modules that it imports everything from."""
    if parsed := folder.parse(file):
        yield parsed
        for node in ast.walk(parsed):
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                place = folder.find(absolute(node, file, root), (root, "", "src"))
                if place and place[0] not in (*seen, file):
                    yield from star_imports(folder, place[0], root, (*seen, file))


def assigned(module: ast.Module, name: str) -> list[ast.expr]:
    """Return what a module assigns to a name, in any branch, other than empty constants."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            empty = isinstance(node.value, ast.Constant) and not node.value.value
            if not empty and any(isinstance(target, ast.Name) and target.id == name for target in targets):
                found.append(node.value)
    return found


def absolute(node: ast.ImportFrom, file: str, root: str) -> str:
    """Return the absolute name of the module that a statement imports from."""
    if not node.level:
        return node.module or ""
    package = posixpath.relpath(posixpath.dirname(file) or ".", root or ".").split("/")
    parent = package[: len(package) - node.level + 1]
    return ".".join([*(part for part in parent if part != "."), *([node.module] if node.module else [])])


def modules(folder: Folder, of: str) -> Served:
    """Return the app of the modules that usually have one: a name that is bound to an app, else a factory."""
    instances: dict[tuple[str, str], tuple[str, str, str]] = {}
    factories: dict[tuple[str, str], tuple[str, str, str]] = {}
    problems: list[str] = []
    for root in ("", "src"):
        for module in module_names(folder, root):
            place = folder.find(module, (root,))
            if not place:
                continue
            for name, binding in apps_in(folder, place[0], root, problems).items():
                answer = (f"{module}:{name}{binding.suffix}", place[0], root)
                (factories if binding.suffix == "()" else instances).setdefault(binding.origin, answer)
    answers = [*(instances or factories).values()]
    if len(answers) > 1:
        raise BuildError(several(of, [(target, file) for target, file, _ in answers]))
    if answers:
        ((target, file, root),) = answers
        return Served(target, [file], [root] if root else [])
    raise BuildError(nothing(folder, of, problems))


def module_names(folder: Folder, root: str) -> Iterator[str]:
    """Yield the names of the modules that are searched below a folder of the import path."""
    yield from MODULES
    prefix = f"{root}/" if root else ""
    inner = {name.removeprefix(prefix).partition("/")[0] for name in folder.files if name.startswith(prefix)}
    for package in sorted(inner - NO_PACKAGES):
        named = [f"{prefix}{package}/{module}.py" in folder.files for module in ("__init__", *MODULES)]
        if package.isidentifier() and (named[0] or (package == "app" and any(named))):
            if package not in MODULES:
                yield package
            yield from (f"{package}.{module}" for module, there in zip(MODULES, named[1:], strict=True) if there)


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module that run when it is imported, except those within functions and classes."""
    for node in body:
        if isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
            continue
        if isinstance(node, ast.If | ast.Try | ast.With):
            for name in ("body", "handlers", "orelse"):
                for inner in getattr(node, name, []):
                    yield from statements(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])
        else:
            yield node


def apps_in(folder: Folder, file: str, root: str, problems: list[str]) -> dict[str, Binding]:
    """Return the names of a module that are apps or factories.

    Args:
        folder: the app's folder.
        file: the module's file.
        root: the folder of the import path in which it lies.
        problems: gets the reasons why objects that look like apps can't be served.
    """
    parsed = folder.parse(file)
    imported: dict[str, str] = {}
    bound: dict[str, Binding] = {}
    factories: dict[str, Binding] = {}
    for node in statements(parsed.body if parsed else []):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, file, root)
            place = folder.find(module, (root, "", "src"))
            for alias in node.names:
                name = alias.asname or alias.name
                imported[name] = f"{module}.{alias.name}"
                if name in NAMES and not folder.find(f"{module}.{alias.name}", (root, "", "src")):
                    bound[name] = origin_of(folder, place, alias.name, problems) or Binding((module, alias.name))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    bind(target.id, node.value, file, imported, bound, problems)
        elif binding := function(node, file, problems):
            (factories if binding.suffix else bound)[binding.origin[1]] = binding
    chosen = {name: binding for name, binding in bound.items() if name in NAMES} or bound
    return chosen or factories


def function(node: ast.stmt, file: str, problems: list[str]) -> Binding | None:
    """Return a function as an app or as a factory; None for another statement."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    arguments = node.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    if names in (["scope", "receive", "send"], ["environ", "start_response"]):
        return Binding((file, node.name))
    if not FACTORY.fullmatch(node.name):
        return None
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required = names[: len(names) - len(arguments.defaults)] + [each.arg for each, value in named if not value]
    if not required and isinstance(node, ast.FunctionDef):
        return Binding((file, node.name), "()")
    reason = f"needs {', '.join(required)}" if required else "is async"
    problems.append(
        f"{node.name} in {file} {reason}, and Booty calls a function without arguments: write one that returns the app,"
        " and name it in app_serve"
    )
    return None


def origin_of(folder: Folder, place: tuple[str, str] | None, name: str, problems: list[str]) -> Binding | None:
    """Follow an imported name through a chain of imports to the app's definition."""
    if not place or name not in (names := apps_in(folder, *place, problems)):
        return None
    return names[name]


def bind(
    name: str,
    value: ast.expr,
    file: str,
    imported: dict[str, str],
    bound: dict[str, Binding],
    problems: list[str],
) -> None:
    """Record a name if the value that a module assigns to it looks like an app."""
    bound.pop(name, None)
    if isinstance(value, ast.Name) and value.id in bound:
        bound[name] = bound[value.id]
    elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id in bound:
        bound[name] = Binding((*bound[value.value.id].origin[:1], f"{value.value.id}.{value.attr}"))
    elif isinstance(value, ast.Attribute) and name in NAMES:
        bound[name] = Binding((file, name))
    elif isinstance(value, ast.Call):
        dotted = ast.unparse(value.func)
        first, _, rest = dotted.partition(".")
        full = f"{imported.get(first, first)}.{rest}".rstrip(".")
        package, last = full.partition(".")[0], full.rpartition(".")[2]
        if package in FOREIGN:
            problems.append(f"{name} in {file}: {FOREIGN[package]}, and Booty serves ASGI and WSGI apps")
        elif last == "Dash":
            bound[name] = Binding((file, f"{name}.server"), ".server")
        elif last in MAKERS or (name in NAMES and package not in OTHERS):
            # `app = Middleware(app)` replaces the app under the same name.
            bound[name] = Binding((file, name))


def nothing(folder: Folder, of: str, problems: list[str]) -> str:
    """Return the sentence for an app in which nothing was found, with the apps that other files of it have."""
    if problems:
        return f"{of} has nothing that Booty can serve. {problems[0]}."
    others = []
    python = sorted(name for name in folder.files if name.endswith(".py"))[:500]
    for name in python:
        parts = name.removesuffix(".py").removesuffix("/__init__").split("/")
        if NO_PACKAGES & {*parts} or not all(part.isidentifier() for part in parts):
            continue
        if re.search(rf"^\w+\s*(:[^=\n]+)?=.*\b({'|'.join(MAKERS)})\(", folder.read(name) or "", re.MULTILINE):
            others += [f"{'.'.join(parts)}:{each}" for each in apps_in(folder, name, "", [])]
    known = "entrypoint under [tool.fastapi], a Procfile, manage.py, and the modules main, app, asgi and wsgi"
    hint = f" Apps in other modules: {', '.join(others[:5])}." if others else ""
    hint += f" {folder.flaws[0]}." if folder.flaws else ""
    write = line(others[0] if others else "module:attribute")
    return f"{of} has no app that Booty finds: it reads {known}.{hint} Write it: {write}."
